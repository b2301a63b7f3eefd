# SPDX-License-Identifier: Apache-2.0
"""Everything without a reduction: one pass, split over the cores, vectorized along the last axis."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...target import vector_bytes
from ..rule import ScheduleRule, blocks_of, choose, inline_producers, is_spatial, largest_divisor, loop_extents

# below this many elements, waking the other cores costs more than it saves
PARALLEL_ELEMENTS = 50_000


class Elementwise(ScheduleRule):
    """Inline what can be, then run each remaining block as one parallel vectorized loop nest."""

    general = True

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        if not all(is_spatial(sch, block) for block in blocks_of(sch)):
            return None
        inline_producers(sch, keep_functions=True)
        for block in blocks_of(sch):
            parallel_vectorize(sch, block, target, tunable)
        return [sch] if tunable else sch


def schedule_producers(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target) -> bool:
    """Schedule the blocks that `block` reads, padding for one; return False where one of them is a reduction."""
    producers = sch.get_producers(block)
    if not all(is_spatial(sch, producer) for producer in producers):
        return False
    for producer in producers:
        parallel_vectorize(sch, producer, target)
    return True


def parallel_vectorize(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target, tunable: bool = False) -> None:
    """Schedule a spatial `block`: all loops but the last fused and parallel, the last one vectorized."""
    loops = sch.get_loops(block)
    extents = loop_extents(sch, loops)
    if not loops or extents is None or 0 in extents:
        return  # nothing to compute
    lanes = vector_bytes(target) // 4
    width = largest_divisor(extents[-1], lanes)
    if width > 1 and width >= lanes // 4 and not _repeats_bfloat16(sch, block):
        widths = [width * n for n in (1, 2, 4) if extents[-1] % (width * n) == 0]
        outer, inner = sch.split(loops[-1], [None, choose(sch, widths, width, tunable)])
        sch.vectorize(inner)
        loops = [*loops[:-1], outer]
    elif extents[-1] > lanes and _is_float32(sch, block):
        # whole vectors and a rest, whose lanes LLVM masks
        outer, inner = sch.split(loops[-1], [None, lanes])
        sch.vectorize(inner)
        loops = [*loops[:-1], outer]
    total = math.prod(extents)
    if total >= PARALLEL_ELEMENTS and len(loops) > 1:
        sch.parallel(sch.fuse(*loops[:-1]))
    elif total >= PARALLEL_ELEMENTS:
        sch.parallel(loops[0])


def _is_float32(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    return all(str(access.source.dtype) == "float32" for access in (*sch.get(block).reads, *sch.get(block).writes))


def _repeats_bfloat16(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether a bfloat16 is written to neighbouring places as it is, as `expand` does.

    TVM 0.27 lowers vectors of bfloat16 to those of integers, but not a number that is repeated into one.
    """
    realized = sch.get(block)
    if str(realized.writes[0].source.dtype) != "bfloat16" or not isinstance(realized.body, tirx.BufferStore):
        return False
    last = realized.iter_vars[-1].var
    moved = [realized.body.value]
    while moved:
        value = moved.pop()
        if isinstance(value, tirx.Select):
            moved += [value.true_value, value.false_value]
        elif isinstance(value, tvm.ir.Call) and getattr(value.op, "name", "") == "tirx.if_then_else":
            moved += list(value.args[1:])
        elif isinstance(value, tvm.ir.TensorLoad) and not any(
            last.same_as(var) for at in value.indices for var in tirx.analysis.undefined_vars(at, [])
        ):
            return True
    return False
