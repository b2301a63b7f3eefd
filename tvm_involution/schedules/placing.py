# SPDX-License-Identifier: Apache-2.0
"""Blocks computed inside another's loops, checked: TVM infers the part that a turn of the loop needs.

Behind an uneven split TVM 0.27 infers too much, or forgets where an axis ends: the block then reads what its neighbour
in the graph has not written in this turn, or writes outside the buffer. So what a turn produces and what it consumes
are worked out once more, for single turns of the loop (the first, the last, some between), and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm_ffi import structural_map, structural_walk

from .intervals import Interval, interval_of, limits_of

_SHARED_BY = {"shared": ("threadIdx.x", "threadIdx.y"), "warp": ("threadIdx.x",)}
"""whose threads see the same memory"""


class WrongRegionError(s_tir.ScheduleError):
    """TVM inferred another region than one turn of the loop has: the schedule would be wrong."""


def compute_at(
    sch: s_tir.Schedule,
    block: SBlockRV,
    loop: LoopRV,
    *,
    preserve_unit_loops: bool = True,
    index: int = -1,
    rounded: bool = False,
) -> None:
    """Compute `block` in `loop`, as much as the blocks that read it need there.

    Args:
        rounded: the block was made to compute whole packs, so more than is read.

    Raises:
        ScheduleError: it can't go there; a `WrongRegionError` where it would compute more than is needed, or with
            `rounded` less.
    """
    sch.compute_at(block, loop, preserve_unit_loops, index)
    placed = _placed(sch, block, loop)
    if placed is not None:
        readers = [other for o in sch.get_consumers(block) if (other := _placed(sch, o, loop)) is not None]
        if not rounded:
            _check(placed, "writes", readers, "reads")
        for reader in readers if rounded else ():
            _check(reader, "reads", [placed], "writes")


def reverse_compute_at(
    sch: s_tir.Schedule, block: SBlockRV, loop: LoopRV, *, preserve_unit_loops: bool = True, index: int = -1
) -> None:
    """Compute `block` in `loop`, as much as can be of what the blocks that it reads have written there.

    Raises:
        ScheduleError: it can't go there; a `WrongRegionError` where it would read more than is written.
    """
    sch.reverse_compute_at(block, loop, preserve_unit_loops, index)
    placed = _placed(sch, block, loop)
    if placed is not None:
        writers = [other for o in sch.get_producers(block) if (other := _placed(sch, o, loop)) is not None]
        _check(placed, "reads", writers, "writes")


_Turn = dict[tirx.Var, Interval]
"""the values that the loops around a block take"""


@dataclass(frozen=True)
class _Placed:
    """A block inside a loop."""

    outer: tuple[tirx.For, ...]
    """the loop and those around it, the outermost first"""
    inner: tuple[tirx.For, ...]
    realize: s_tir.SBlockRealize

    @property
    def name(self) -> str:
        return self.realize.block.name_hint

    def indices(self, accesses: str) -> list[tuple[tirx.Buffer, list[tuple[tirx.Expr, tirx.Expr]]]]:
        """Return what the block `reads` or `writes`: first indices and how many, by the variables of the loops."""
        node = self.realize.block
        values = {axis.var: value for axis, value in zip(node.iter_vars, self.realize.iter_values, strict=True)}

        def by_loops(expr: tirx.Expr) -> tirx.Expr:
            return structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))

        return [
            (access.source, [(by_loops(part.min), by_loops(part.extent)) for part in access.region])
            for access in getattr(node, accesses)
        ]

    def interval(self, first: tirx.Expr, turn: _Turn, count: tirx.Expr | None = None) -> Interval | None:
        """Return where `count` indices from `first` lie in a turn of the loop, where the block runs."""
        known = {**turn, **{loop.loop_var: Interval(0, int(loop.extent) - 1) for loop in self.inner}}
        found = interval_of(first, known, limits_of(self.realize.predicate))
        if found is None or count is None:
            return found
        length = interval_of(count, known, [])
        return None if length is None else Interval(found.low, found.high + length.high - 1, found.exact)


def _placed(sch: s_tir.Schedule, block: SBlockRV, loop: LoopRV) -> _Placed | None:
    """Return a block with its loops; None where it is not in `loop`, or a loop's extent is not known."""
    loops, home, node = [sch.get(around) for around in sch.get_loops(block)], sch.get(loop), sch.get(block)
    depth = next((i for i, around in enumerate(loops) if around.same_as(home)), None)
    if depth is None or not all(isinstance(around.extent, tirx.IntImm) for around in loops):
        return None
    found: list[s_tir.SBlockRealize] = []

    def visit(realize: s_tir.SBlockRealize) -> None:
        if realize.block.same_as(node):
            found.append(realize)

    structural_walk(loops[-1].body, (s_tir.SBlockRealize, visit))
    return _Placed(tuple(loops[: depth + 1]), tuple(loops[depth + 1 :]), found[0])


def _check(placed: _Placed, does: str, others: Sequence[_Placed], they_do: str) -> None:
    """Check that in a turn `placed` reads no more than others write, or writes no more than they read."""
    mine = placed.indices(does)
    theirs = [(other, *access) for other in others for access in other.indices(they_do)]
    where = f"in a turn of {placed.outer[-1].loop_var.name}"
    for turn in _turns(placed.outer, {buffer.scope() for buffer, _ in mine}):
        for axis, value in zip(placed.realize.block.iter_vars, placed.realize.iter_values, strict=True):
            runs, extent = placed.interval(value, turn), axis.dom.extent
            if runs is None or not runs.exact or not isinstance(extent, tirx.IntImm):
                continue
            if runs not in Interval(0, int(extent) - 1):
                raise WrongRegionError(
                    f"{placed.name} runs from {runs.low} to {runs.high} on axis {axis.var.name} {where}, "
                    f"expected numbers below {int(extent)}"
                )
        for buffer, region in mine:
            boxes = [(other, box) for other, source, box in theirs if source.same_as(buffer)]
            for number, part in enumerate(region):
                own = placed.interval(part[0], turn, part[1])
                reach = [other.interval(box[number][0], turn, box[number][1]) for other, box in boxes]
                known = [one for one in reach if one is not None]
                if own is None or not own.exact or not known or len(known) < len(reach):
                    continue
                whole = Interval(min(one.low for one in known), max(one.high for one in known))
                if own not in whole:
                    raise WrongRegionError(
                        f"{placed.name} {does} {buffer.name} from {own.low} to {own.high} on axis {number} {where}, "
                        f"expected {whole.low} to {whole.high}, what others there {they_do.removesuffix('s')}"
                    )


def _turns(loops: Sequence[tirx.For], scopes: set[str]) -> Iterator[_Turn]:
    """Yield some turns of the innermost of `loops`; threads that share a buffer's memory count as one."""
    together = {tag for scope in scopes for tag in _SHARED_BY.get(scope, ())}
    last = [int(loop.extent) - 1 for loop in loops]
    points = [[0] * len(last), last, [value // 2 for value in last]]
    points += [[value if i == j else 0 for j, value in enumerate(last)] for i in range(len(last))]
    for point in dict.fromkeys(map(tuple, points)):
        yield {
            loop.loop_var: Interval(0, end) if _tag(loop) in together else Interval(value, value)
            for loop, value, end in zip(loops, point, last, strict=True)
        }


def _tag(loop: tirx.For) -> str:
    return "" if loop.thread_binding is None else str(loop.thread_binding.thread_tag)
