# SPDX-License-Identifier: Apache-2.0
"""Programs of rows, whose numbers lie beside each other: softmax, norms, sums and means along the last axes.

All of a row's sums and steps run before those of the next, so it is read from memory once. A row of any length is taken
in whole vectors and a rest (`lowering/take_vectors.py`), its sums in several vectors, whose additions need not wait
for each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...target import vector_bytes
from ..placing import compute_at
from ..rule import (
    ScheduleRule,
    blocks_of,
    choose,
    contiguous_axes,
    depends,
    inline_producers,
    is_spatial,
    largest_divisor,
    loop_extents,
    take_vectors,
)

# below this many numbers, waking the other cores costs more than it saves
ROWS_GRAIN = 100_000
# numbers of a row that are kept on the stack
_STACK = 1024
# rows of fewer numbers are taken several at a time: one number of each is a vector, too, and their sums need not wait
# for each other
_SHORT, _TOGETHER = 64, 16


class Rows(ScheduleRule):
    """Schedule programs whose sums go along all of the last axes of what they read."""

    general = True

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        blocks = blocks_of(sch)
        sums = [block for block in blocks if not is_spatial(sch, block)]
        if not sums or not all(reads_rows(sch.get(block)) for block in sums):
            return None
        extents = [loop_extents(sch, sch.get_loops(block)) for block in blocks]
        if any(found is None or 0 in found for found in extents):
            return None
        steps = max(math.prod(found) for found in extents if found is not None)
        inline_producers(sch, keep_functions=True)
        *rest, last = blocks_of(sch)
        ends = [block for block in (*rest, last) if not sch.get_consumers(block)]
        if len(ends) > 1:
            return None
        rows = _rows(sch, last, [block for block in (*rest, last) if not is_spatial(sch, block)])
        if rows is None:
            return None
        if rows:
            if math.prod(int(sch.get(loop).extent) for loop in sch.get_loops(last)[len(rows) :]) < _SHORT:
                # of one axis: a region that lies in two would be no box
                together = largest_divisor(int(sch.get(rows[-1]).extent), _TOGETHER)
                rows[-1], _ = sch.split(rows[-1], [None, together])
            row = sch.fuse(*rows)
            if steps >= ROWS_GRAIN:
                sch.parallel(row)
            for block in reversed(rest):
                compute_at(sch, block, row)
                if _numbers(sch, block) <= _STACK:
                    sch.set_scope(block, 0, "local")
        for block in (*rest, last):
            _take_vectors(sch, block, 1 if rows else 0, target, tunable)
        return [sch] if tunable else sch


def reads_rows(block: s_tir.SBlock) -> bool:
    """Return whether the numbers of a sum lie beside each other: where they are read, its last axis is the last."""
    summed = [axis.var for axis in block.iter_vars if axis.iter_type == tirx.IterVar.CommReduce]
    numbers = [
        region.region[-1].min
        for region in block.reads
        if any(depends(part.min, axis) for part in region.region for axis in summed)
    ]
    last = block.iter_vars[-1].var
    return bool(numbers) and all(isinstance(end, tirx.Var) and end.same_as(last) for end in numbers)


def _numbers(sch: s_tir.Schedule, block: SBlockRV) -> int:
    """Return how many numbers `block` writes in a row, where it runs within one."""
    extents = loop_extents(sch, sch.get_loops(block)[1:])
    assert extents is not None
    return math.prod(extents[: len(extents) - _reduced(sch, block)])


def _rows(sch: s_tir.Schedule, last: SBlockRV, sums: Sequence[SBlockRV]) -> list[LoopRV] | None:
    """Return the outer loops of the `last` block, a turn of which needs one of each of the `sums`; None without."""
    counts = {tuple(e for e in _spatial(sch, block) if e > 1) for block in sums}
    if len(counts) > 1:
        return None
    wanted, rows = list(counts.pop()), []
    loops = sch.get_loops(last)[: len(_spatial(sch, last))]
    for loop in loops:
        extent = int(sch.get(loop).extent)
        if extent == 1:
            rows.append(loop)
        elif not wanted:
            break
        elif extent == wanted[0]:
            rows.append(loop)
            wanted.pop(0)
        elif extent % wanted[0] == 0:
            rows.append(sch.split(loop, [wanted.pop(0), None])[0])
            break
        else:
            return None
    return None if wanted else rows


def _spatial(sch: s_tir.Schedule, block: SBlockRV) -> list[int]:
    axes = sch.get(block).iter_vars
    return [int(axis.dom.extent) for axis in axes if axis.iter_type == tirx.IterVar.DataPar]


def _take_vectors(sch: s_tir.Schedule, block: SBlockRV, outer: int, target: tvm.target.Target, tunable: bool) -> None:
    """Take the numbers of `block` behind its `outer` loops in vectors, as many loops as lie one behind the other."""
    loops = sch.get_loops(block)[outer:]
    sums = not is_spatial(sch, block)
    if sums:
        loops = loops[len(loops) - _reduced(sch, block) :]
    if not loops:
        return  # one number a row
    together = min(len(loops), contiguous_axes(sch.get(block)))
    loops = [*loops[:-together], sch.fuse(*loops[-together:])] if together > 1 else loops
    if sums:
        sch.decompose_reduction(block, loops[0])
    vector = vector_bytes(target) // 4
    # sums of several vectors do not wait for each other
    take_vectors(sch, loops[-1], choose(sch, [vector * n for n in (1, 2, 4, 8)], vector * (4 if sums else 1), tunable))


def _reduced(sch: s_tir.Schedule, block: SBlockRV) -> int:
    return len(sch.get(block).iter_vars) - len(_spatial(sch, block))
