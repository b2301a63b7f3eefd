# SPDX-License-Identifier: Apache-2.0
"""Everything without a reduction: one pass, split over the cores, vectorized along the last axis."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...target import vector_bytes
from ..rule import (
    ScheduleRule,
    blocks_of,
    choose,
    contiguous_axes,
    inline_producers,
    is_spatial,
    largest_divisor,
    loop_extents,
    nodes_of,
    take_vectors,
)

# below this many elements, waking the other cores costs more than it saves
PARALLEL_ELEMENTS = 50_000
# numbers of a row that suffice, of which there are several for several cores
_ROW = 2048


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
    """Schedule a spatial `block`: numbers that lie one behind the other in vectors, all loops around them parallel."""
    loops = sch.get_loops(block)
    extents = loop_extents(sch, loops)
    if not loops or extents is None or 0 in extents:
        return  # nothing to compute
    total, lanes = math.prod(extents), vector_bytes(target) // 4
    width = _row_within(sch.get(block), lanes) if len(sch.get(block).iter_vars) == len(loops) else None
    if width is not None:
        loops = [*loops[:-1], *sch.split(loops[-1], [None, width])]
        extents = [*extents[:-1], extents[-1] // width, width]
    together = _together(sch, block, extents)
    rows, row = loops[:-together], sch.fuse(*loops[-together:]) if together > 1 else loops[-1]
    parallel, length = total >= PARALLEL_ELEMENTS, math.prod(extents[-together:])
    if parallel and not rows and (part := largest_divisor(length, _ROW)) >= lanes:
        outer, row = sch.split(row, [None, part])
        rows, length = [outer], part
    if parallel:
        sch.parallel(sch.fuse(*rows) if rows else row)
    if 4 * length < lanes or (parallel and not rows) or _repeats_bfloat16(sch, block):
        return
    if isinstance(sch.get(block).body, tirx.BufferStore):
        take_vectors(sch, row, choose(sch, [lanes, 2 * lanes, 4 * lanes], lanes, tunable))
    elif (width := largest_divisor(length, lanes)) > 1:
        # loops of a pixel, such as those over a part that adaptive pooling takes
        sch.vectorize(sch.split(row, [None, width])[1])


def _row_within(block: s_tir.SBlock, lanes: int) -> int | None:
    """Return the length of the rows of what is read of which the last axis is made, pixels of a map for one; or None.

    A vector of it would lie in two rows.
    """
    axis, extent = block.iter_vars[-1].var, block.iter_vars[-1].dom.extent
    widths = {
        int(part.b)
        for part in nodes_of(block.body, tirx.FloorMod)
        if isinstance(part.b, tirx.IntImm) and isinstance(part.a, tirx.Var) and part.a.same_as(axis)
    }
    fitting = [width for width in widths if 2 * width >= lanes and width < int(extent) and int(extent) % width == 0]
    return min(fitting, default=None)


def _together(sch: s_tir.Schedule, block: SBlockRV, extents: list[int]) -> int:
    """Return how many of the last loops to make one row of: until it is long enough for its rest not to matter."""
    limit = contiguous_axes(sch.get(block)) if len(sch.get(block).iter_vars) == len(extents) else 1
    return next((count for count in range(1, limit) if math.prod(extents[-count:]) >= _ROW), limit)


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
