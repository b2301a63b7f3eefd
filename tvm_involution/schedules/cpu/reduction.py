# SPDX-License-Identifier: Apache-2.0
"""Reductions that no other rule takes: pooling, means, convolutions in TVM's own lowering."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...target import vector_bytes
from ..placing import reverse_compute_at
from ..rule import (
    ScheduleRule,
    blocks_of,
    choose,
    divisors,
    inline_producers,
    is_spatial,
    loop_extents,
    loops_by_kind,
    take_vectors,
)
from .elementwise import parallel_vectorize
from .rows import reads_rows

# below this many elements read, waking the other cores costs more than it saves
REDUCTION_GRAIN = 100_000
# vectors of sums in registers, which do not wait for each other
_VECTORS = 8
# sums that are kept on the stack
_STACK = 1024


class Reduction(ScheduleRule):
    """Split the outputs over the cores; sum a vector of neighbouring outputs at a time."""

    general = True

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        if all(is_spatial(sch, block) for block in blocks_of(sch)):
            return None
        inline_producers(sch, keep_functions=True)
        placed: list[str] = []
        for block in blocks_of(sch):
            if not is_spatial(sch, block):
                placed += _schedule_reduction(sch, block, target, tunable)
            elif sch.get(block).name_hint not in placed:
                parallel_vectorize(sch, block, target, tunable)
        return [sch] if tunable else sch


def _schedule_reduction(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target, tunable: bool) -> list[str]:
    """Schedule the sums `block`, and return the names of other blocks that were placed with it."""
    loops = sch.get_loops(block)
    kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
    extents = loop_extents(sch, loops)
    if extents is None or len(kinds) != len(loops) or 0 in extents:
        return []
    spatial, reduced = loops_by_kind(sch, block)
    if not spatial or not reduced:
        return []
    lanes = vector_bytes(target) // 4
    parallel = math.prod(extents) >= REDUCTION_GRAIN
    if reads_rows(sch.get(block)):
        task = sch.fuse(*spatial)
        if parallel:
            sch.parallel(task)
        sch.decompose_reduction(block, reduced[0])
        take_vectors(sch, reduced[-1], choose(sch, [lanes, 2 * lanes, 4 * lanes], 4 * lanes, tunable))
        return []
    widths = _widths(int(sch.get(spatial[-1]).extent), lanes)
    outer, inner = sch.split(spatial[-1], [None, choose(sch, widths, widths[0], tunable)])
    sch.reorder(*spatial[:-1], outer, *reduced, inner)
    task = sch.fuse(*spatial[:-1], outer)
    if parallel:
        sch.parallel(task)
    placed = [block]
    if len(sch.get(block).writes) == 1 and widths[0] <= _STACK:
        placed.append(_epilogue(sch, block))
        reverse_compute_at(sch, placed[-1], task)
        sch.set_scope(block, 0, "local")
    for part in (sch.decompose_reduction(block, reduced[0]), *placed):
        take_vectors(sch, sch.get_loops(part)[-1], 4 * lanes)
    return [sch.get(part).name_hint for part in placed]


def _widths(channels: int, lanes: int) -> list[int]:
    """Return how many neighbouring sums to keep together, the best first: whole vectors, where any divide them."""
    parts = divisors(channels, _VECTORS * lanes)[::-1]
    best = next((part for part in parts if part % lanes == 0), parts[0])
    if best < lanes and channels <= _STACK:
        return [channels]
    return [best, *(part for part in parts if part % lanes == 0 and part < best)]


def _epilogue(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV:
    """Return the one block that follows the sums `block`, as large as it; or a copy of it."""
    following = sch.get_consumers(block)
    shapes = [tuple(map(int, sch.get(one).writes[0].source.shape)) for one in (block, *following)]
    if len(following) == 1 and len(set(shapes)) == 1 and is_spatial(sch, following[0]):
        alone = len(sch.get_producers(following[0])) == 1 and not sch.get_consumers(following[0])
        if alone:
            return following[0]
    return sch.cache_write(block, 0, "local")
