# SPDX-License-Identifier: Apache-2.0
"""Everything without a reduction: one pass, split over the cores, vectorized along the last axis."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV
from tvm_ffi import structural_equal

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
# vectors of sums in memory
_VECTORS = 4
# numbers of a tensor that one number is made of, as interpolation does; to find them again in another order costs more
# than a copy
_TAKEN = 4
# rows that are copied to another order together: numbers of a cache line
_TRANSPOSED = 16


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
        inline_producers(sch, keep_functions=True, keep=_kept_apart(sch))
        for block in blocks_of(sch):
            parallel_vectorize(sch, block, target, tunable)
        return [sch] if tunable else sch


def _kept_apart(sch: s_tir.Schedule) -> list[str]:
    """Return the blocks around interpolations, and these themselves, between which the order of the axes changes."""
    kept = []
    for block in blocks_of(sch):
        if _taken_together(sch.get(block)) >= _TAKEN:
            before = [one for one in sch.get_producers(block) if _transposed(sch.get(one)) is not None]
            behind = [one for one in sch.get_consumers(block) if _transposed(sch.get(one)) is not None]
            kept += [*before, *([block] if behind else [])]
    return [sch.get(block).name_hint for block in kept]


def _taken_together(block: s_tir.SBlock) -> int:
    """Return how many numbers of a tensor one number is made of, at most."""
    places: list[tvm.ir.TensorLoad] = []
    for load in nodes_of(block.body, tvm.ir.TensorLoad):
        if not any(structural_equal(load, other) for other in places):
            places.append(load)
    return max((sum(load.source.same_as(other.source) for other in places) for load in places), default=0)


def _transposed(block: s_tir.SBlock) -> int | None:
    """Return which axis of a copy is the last of what it reads, where its own last is another; None of other blocks."""
    axes = [axis.var for axis in block.iter_vars]
    body = block.body
    if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, tvm.ir.TensorLoad):
        return None
    found = [next((n for n, axis in enumerate(axes) if axis.same_as(index)), None) for index in body.value.indices]
    return found[-1] if found and None not in found and found[-1] != len(axes) - 1 else None


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
    across = _transposed(sch.get(block)) if len(sch.get(block).iter_vars) == len(loops) else None
    if across is not None and total >= PARALLEL_ELEMENTS and extents[-1] >= lanes:
        outer, inner = sch.split(loops[across], [None, largest_divisor(extents[across], _TRANSPOSED)])
        rest = [loop for place, loop in enumerate(loops) if place != across]
        sch.reorder(*rest[:-2], outer, *rest[-2:-1], inner, rest[-1])
        sch.parallel(sch.fuse(*rest[:-2], outer))
        take_vectors(sch, rest[-1], lanes)
        return
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
        # loops of a pixel, such as those over a part that adaptive pooling takes: sums that do not wait for each other
        width *= largest_divisor(length // width, _VECTORS)
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
