# SPDX-License-Identifier: Apache-2.0
"""Reductions that no other rule takes: pooling, means, convolutions in TVM's own lowering."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...target import vector_bytes
from ..placing import compute_at
from ..rule import (
    ScheduleRule,
    blocks_of,
    choose,
    inline_producers,
    is_spatial,
    largest_divisor,
    loop_extents,
    loops_by_kind,
)
from .elementwise import parallel_vectorize

# below this many elements read, waking the other cores costs more than it saves
REDUCTION_GRAIN = 100_000


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
        for block in blocks_of(sch):
            if is_spatial(sch, block):
                parallel_vectorize(sch, block, target, tunable)
            else:
                _schedule_reduction(sch, block, target, tunable)
        return [sch] if tunable else sch


def _schedule_reduction(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target, tunable: bool) -> None:
    loops = sch.get_loops(block)
    kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
    extents = loop_extents(sch, loops)
    if extents is None or len(kinds) != len(loops):
        return
    spatial, reduced = loops_by_kind(sch, block)
    if not spatial or not reduced:
        return
    lanes = _lanes_along(extents[-len(reduced) :], target) if _reads_along(sch.get(block)) else 1
    if lanes > 1:
        _sum_along(sch, block, spatial, reduced, lanes, math.prod(extents))
        return
    width = largest_divisor(int(sch.get(spatial[-1]).extent), vector_bytes(target) // 4)
    widths = [width * n for n in (1, 2, 4) if int(sch.get(spatial[-1]).extent) % (width * n) == 0]
    outer, inner = sch.split(spatial[-1], [None, choose(sch, widths, width, tunable)])
    sch.reorder(*spatial[:-1], outer, *reduced, inner)
    task = sch.fuse(*spatial[:-1], outer)
    if math.prod(extents) >= REDUCTION_GRAIN:
        sch.parallel(task)
    # TVM's lowering of bfloat16 storage stumbles over a vector maximum (seen in 0.27 with max_pool2d)
    if str(sch.get(block).writes[0].source.dtype) != "bfloat16":
        sch.vectorize(inner)
    sch.decompose_reduction(block, reduced[0])


def _reads_along(block: s_tir.SBlock) -> bool:
    """Return whether the numbers of a sum lie beside each other: what is read ends in the sum's last axis."""
    last = block.iter_vars[-1]
    # a scalar has no index
    ends = [region.region[-1].min if region.region else None for region in block.reads]
    return last.iter_type == tirx.IterVar.CommReduce and all(
        isinstance(end, tirx.Var) and end.same_as(last.var) for end in ends
    )


def _lanes_along(extents: list[int], target: tvm.target.Target) -> int:
    """Return how many partial sums to keep of a sum over `extents`, whole vectors; 1 where none divides it.

    Additions to one vector wait for each other, and so do the additions of the lanes at the end.
    """
    vector = vector_bytes(target) // 4
    widths = [vector * n for n in (1, 2, 4) if extents[-1] % (vector * n) == 0]
    return min(widths, key=lambda width: math.prod(extents) // width + width, default=1)


def _sum_along(
    sch: s_tir.Schedule, block: SBlockRV, spatial: list[LoopRV], reduced: list[LoopRV], lanes: int, steps: int
) -> None:
    """Keep `lanes` partial sums, neighbours in memory, and add them up at the end."""
    _, lane = sch.split(reduced[-1], [None, lanes])
    partial = sch.rfactor(lane, factor_axis=len(spatial))
    task = sch.fuse(*sch.get_loops(block)[: len(spatial)])
    if steps >= REDUCTION_GRAIN:
        sch.parallel(task)
    compute_at(sch, partial, task)
    # a loop for each of its axes: those of the outputs, the lane, those of the sum
    *_, lane, first = own = sch.get_loops(partial)[: -len(reduced) + 1 or None]
    sums = [first, *sch.get_loops(partial)[len(own) :]]
    sch.reorder(*sums, lane)
    sch.vectorize(lane)
    sch.decompose_reduction(partial, first)
    sch.set_scope(partial, 0, "local")
    sch.decompose_reduction(block, sch.get_loops(block)[-1])
