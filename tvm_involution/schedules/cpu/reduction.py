# SPDX-License-Identifier: Apache-2.0
"""Reductions that no other rule takes: pooling, means, convolutions in TVM's own lowering."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...target import vector_bytes
from ..rule import ScheduleRule, blocks_of, choose, inline_producers, is_spatial, largest_divisor, loop_extents
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
        inline_producers(sch)
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
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.DataPar]
    if not spatial or not reduced:
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
