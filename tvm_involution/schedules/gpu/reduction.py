# SPDX-License-Identifier: Apache-2.0
"""Long sums with few results (global average pool, a matrix times a vector, softmax): threads share each sum."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir.schedule import SBlockRV

from ..placing import reverse_compute_at
from ..rule import (
    ScheduleRule,
    blocks_of,
    choose,
    fuse_or_copy,
    inline_producers,
    is_spatial,
    largest_divisor,
    loop_extents,
)

# with more outputs than this every multiprocessor has threads enough
_FEW_OUTPUTS = 1 << 16
_LONG = 32


class Reduction(ScheduleRule):
    """Divide each sum among threads, and add up in shared memory."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        sums = [block for block in blocks_of(sch) if not is_spatial(sch, block)]
        if len(sums) > 1:
            return None if tunable else dlight.gpu.GeneralReduction().apply(func, target, False)
        if not sums:
            return None
        inline_producers(sch)
        block = sums[0]
        if not _worthwhile(sch, block):
            return None
        epilogue = fuse_or_copy(sch, block)
        if epilogue is None:
            return None
        _schedule(sch, block, epilogue, tunable)
        return [sch] if tunable else sch


def _worthwhile(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether there are few outputs, of long sums, in loops over outputs outside and sums inside."""
    extents = loop_extents(sch, sch.get_loops(block))
    kinds = [iter_var.iter_type == tirx.IterVar.DataPar for iter_var in sch.get(block).iter_vars]
    if extents is None or len(extents) != len(kinds) or kinds != sorted(kinds, reverse=True) or not kinds[0]:
        return False
    count = sum(kinds)
    return math.prod(extents[:count]) <= _FEW_OUTPUTS and math.prod(extents[count:]) >= _LONG


def _schedule(sch: s_tir.Schedule, block: SBlockRV, epilogue: SBlockRV, tunable: bool) -> None:
    loops = sch.get_loops(block)
    count = sum(iter_var.iter_type == tirx.IterVar.DataPar for iter_var in sch.get(block).iter_vars)
    # neighbouring threads read neighbouring elements: along the sum where that is the last axis of what is read
    along_sum = _last_axis_is_summed(sch, block)
    width = largest_divisor(int(sch.get(loops[count - 1]).extent), 4 if along_sum else 32)
    output_tag, sum_tag = ("threadIdx.y", "threadIdx.x") if along_sum else ("threadIdx.x", "threadIdx.y")
    # no more than there are numbers: a part without any is not written
    length = math.prod(loop_extents(sch, loops[count:]) or [])
    choices = [parts for parts in ([32, 64, 128] if along_sum else [4, 8, 16, 32]) if parts <= length]
    parts = choose(sch, choices, min(64 if along_sum else 16, choices[-1]), tunable)

    outer, own = sch.split(loops[count - 1], [None, width])
    steps, part = sch.split(sch.fuse(*loops[count:]), [None, parts])
    sch.reorder(*loops[: count - 1], outer, own, part, steps)
    sch.fuse(*loops[: count - 1], outer)
    partial = sch.rfactor(part, 0)
    group, own, part, steps = sch.get_loops(partial)
    sch.bind(group, "blockIdx.x")
    sch.bind(own, output_tag)
    sch.bind(part, sum_tag)
    shared = sch.cache_write(partial, 0, "local")
    reverse_compute_at(sch, shared, part, preserve_unit_loops=False)
    sch.set_scope(shared, 0, "shared")
    sch.decompose_reduction(partial, steps)

    reverse_compute_at(sch, block, group)
    sch.set_scope(block, 0, "local")
    _, *rest = sch.get_loops(block)
    kinds = [iter_var.iter_type == tirx.IterVar.DataPar for iter_var in sch.get(block).iter_vars]
    outputs = [loop for loop, spatial in zip(rest, kinds, strict=True) if spatial]
    summed = [loop for loop, spatial in zip(rest, kinds, strict=True) if not spatial]
    sch.reorder(*outputs, *summed)
    output = sch.fuse(*outputs)
    reverse_compute_at(sch, epilogue, output, preserve_unit_loops=False)
    # the first threads along the sum, and not all of them the same
    part, output = sch.split(output, [parts, width])
    sch.bind(part, sum_tag)
    sch.bind(output, output_tag)
    sch.decompose_reduction(block, summed[0])


def _last_axis_is_summed(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether the largest array that `block` reads has a summed index last."""
    node = sch.get(block)
    region = max(node.reads, key=lambda region: math.prod(int(d) for d in region.source.shape))
    used = tirx.analysis.undefined_vars(region.region[-1].min, [])
    summed = [iter_var.var for iter_var in node.iter_vars if iter_var.iter_type != tirx.IterVar.DataPar]
    return any(var.same_as(other) for var in used for other in summed)
