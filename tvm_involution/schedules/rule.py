# SPDX-License-Identifier: Apache-2.0
"""What a schedule rule is, and what rules share."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm_ffi import structural_equal, structural_walk

from ..target import core_count
from ..te.blocks import Block

_Plan = TypeVar("_Plan")

_FUNCTIONS = {f"tirx.{name}" for name in ["erf", "exp", "log", "log1p", "pow", "rsqrt", "sigmoid", "sqrt", "tanh"]}

LANES = "tvm_involution.lanes"
"""annotation of loops that `lowering/take_vectors.py` takes in vectors of so many numbers"""

PARALLEL_GRAIN = 500_000
"""multiply-adds below which one core is faster than all"""


class ScheduleRule(ABC):
    """Turn a tensor program into a schedule, or say that it is not this rule's."""

    general: bool = False
    """Whether the rule takes programs of any kind, so that convolutions and matrix products may fall to it; tuning
    searches MetaSchedule's own space beside the rule's"""

    @property
    def name(self) -> str:
        """The rule's name in reports."""
        return type(self).__name__

    @abstractmethod
    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """Schedule `func`.

        Args:
            tunable: return the design space instead: schedules whose traces hold sampling instructions (`choose`),
                the default taken in the first of them. Their instructions must hold for every decision.

        Returns:
            The default schedule; with `tunable` a list of schedules, one a structural variant; None where the rule does
            not apply (with `tunable`: or has no space of its own).
        """


def default_or_space(
    plans: Sequence[_Plan], schedule: Callable[[_Plan], s_tir.Schedule | None], tunable: bool
) -> s_tir.Schedule | list[s_tir.Schedule] | None:
    """Return what `ScheduleRule.apply` does where each of `plans`, the default first, is a structural variant.

    Args:
        schedule: schedules by a plan, with `choose` where `tunable`; None where that is impossible.
    """
    if not tunable:
        return schedule(plans[0]) if plans else None
    space = []
    for plan in plans:
        # a variant that TVM cannot place, or places wrongly (`placing.py`), is none
        with contextlib.suppress(s_tir.ScheduleError):
            if (made := schedule(plan)) is not None:
                space.append(made)
    return space or None


def choose(sch: s_tir.Schedule, candidates: Sequence[int], default: int, tunable: bool) -> int | s_tir.schedule.ExprRV:
    """Decide on one of `candidates`: `default`, or with `tunable` a random variable that stands at `default`."""
    if not tunable or len(candidates) == 1:
        return default
    odds = [1.0 / len(candidates)] * len(candidates)
    return sch.sample_categorical(list(candidates), odds, decision=list(candidates).index(default))


def thread_choices(multiply_adds: int) -> list[bool]:
    """Return whether to run on all cores, the default first, then what else is worth trying.

    Waking the other cores takes about 10 us, in which one core does half a million multiply-adds.
    """
    if multiply_adds > 16 * PARALLEL_GRAIN:
        return [True]
    return [True, False] if multiply_adds > PARALLEL_GRAIN else [False, True]


def divisors(extent: int, limit: int) -> list[int]:
    """Return the divisors of `extent` up to `limit`, ascending."""
    return [d for d in range(1, min(extent, limit) + 1) if extent % d == 0]


def balanced_parts(tasks: int, extent: int, target: tvm.target.Target) -> int:
    """Return in how many parts to divide a loop of `extent` so that the cores get equal shares of `tasks` x parts."""
    cores = core_count(target)
    # some slack for cores that get less than a core: a share of 1/16 may be idle
    even = (parts for parts in divisors(extent, 8) if -(-tasks * parts // cores) * cores <= tasks * parts * 17 / 16)
    return next(even, 1)


def find_block(sch: s_tir.Schedule, name: Block) -> SBlockRV | None:
    """Return the block called `name`, or None."""
    for block in blocks_of(sch):
        if sch.get(block).name_hint == name:
            return block
    return None


def find_blocks(sch: s_tir.Schedule, *names: Block) -> list[SBlockRV] | None:
    """Return the blocks called so, or None where one is missing."""
    found = [block for name in names if (block := find_block(sch, name)) is not None]
    return found if len(found) == len(names) else None


def blocks_of(sch: s_tir.Schedule) -> list[SBlockRV]:
    """Return the blocks under the root, in program order."""
    return sch.get_child_blocks(sch.get_sblock("root"))


def is_spatial(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether `block` has no reduction."""
    return all(iter_var.iter_type == tirx.IterVar.DataPar for iter_var in sch.get(block).iter_vars)


def nodes_of(node: tvm.ir.Node, kind: type) -> list[Any]:
    """Return every node of a kind in `node`, each where it stands."""
    found: list[Any] = []
    structural_walk(node, (kind, found.append))
    return found


def loops_by_kind(sch: s_tir.Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    """Return the loops of a block that has one for each of its axes: those over its outputs, and those of its sums."""
    kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
    loops: tuple[list[LoopRV], list[LoopRV]] = ([], [])
    for loop, kind in zip(sch.get_loops(block), kinds, strict=True):
        loops[kind != tirx.IterVar.DataPar].append(loop)
    return loops


def loop_extents(sch: s_tir.Schedule, loops: list[LoopRV]) -> list[int] | None:
    """Return the loops' extents, or None where one is not known at compile time."""
    extents = [sch.get(loop).extent for loop in loops]
    if not all(isinstance(extent, tirx.IntImm) for extent in extents):
        return None
    return [int(extent) for extent in extents]


def fuse_epilogue(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV | None:
    """Make one block of everything elementwise that follows `block`, however often it reads it.

    Returns:
        That block; `block` itself where nothing follows; None where what follows has a sum in it or several ends.
    """
    following = _following(sch, block)
    ends = [follower for follower in following if not sch.get_consumers(follower)]
    if len(ends) > 1 or not all(is_spatial(sch, follower) for follower in following):
        return None
    for follower in following:
        if follower is not ends[0]:
            sch.compute_inline(follower)
    if ends:
        _inline_beside(sch, ends[0], {sch.get(other).name_hint for other in (block, *_leading(sch, block))})
    return ends[0] if ends else block


def _leading(sch: s_tir.Schedule, block: SBlockRV) -> list[SBlockRV]:
    """Return every block that `block` reads, directly or not."""
    return [led for producer in sch.get_producers(block) for led in (producer, *_leading(sch, producer))]


def _inline_beside(sch: s_tir.Schedule, epilogue: SBlockRV, known: set[str]) -> None:
    """Inline what the epilogue reads beside the sums: the numbers that a quantized residual stands for."""
    for producer in sch.get_producers(epilogue):
        if sch.get(producer).name_hint not in known and is_spatial(sch, producer):
            _inline_beside(sch, producer, known)
            sch.compute_inline(producer)


def fuse_or_copy(sch: s_tir.Schedule, block: SBlockRV) -> SBlockRV | None:
    """Return what `fuse_epilogue` does, where nothing follows a copy from registers."""
    epilogue = fuse_epilogue(sch, block)
    return sch.cache_write(block, 0, "local") if epilogue is block else epilogue


def _following(sch: s_tir.Schedule, block: SBlockRV) -> list[SBlockRV]:
    """Return every block that reads `block`, directly or not, in program order."""
    names: set[str] = set()
    unseen = [block]
    while unseen:
        for consumer in sch.get_consumers(unseen.pop()):
            name = sch.get(consumer).name_hint
            if name not in names:
                names.add(name)
                unseen.append(consumer)
    return [follower for follower in blocks_of(sch) if sch.get(follower).name_hint in names]


def inline_producers(sch: s_tir.Schedule, keep_functions: bool = False, keep: Sequence[str] = ()) -> None:
    """Inline every elementwise block that another block reads.

    Args:
        keep_functions: but those that compute a function, such as an exponential or a root, which would be computed
            several times for each of their numbers.
        keep: blocks that stay.
    """
    for block in blocks_of(sch):
        if is_spatial(sch, block) and sch.get_consumers(block) and sch.get(block).name_hint not in keep:
            if keep_functions and _computes_function_again(sch, block):
                continue
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue


def _computes_function_again(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether `block`, inlined, would compute a function of a number more than once."""
    calls = nodes_of(sch.get(block).body, tvm.ir.Call)
    if not any(getattr(call.op, "name", "") in _FUNCTIONS for call in calls):
        return False
    consumers = sch.get_consumers(block)
    return len(consumers) > 1 or 4 * _elements(sch, block) <= _elements(sch, consumers[0])


def _elements(sch: s_tir.Schedule, block: SBlockRV) -> int:
    """Return how many numbers `block` writes; 0 where that is not known."""
    shape = sch.get(block).writes[0].source.shape
    return math.prod(int(d) for d in shape) if all(isinstance(d, tirx.IntImm) for d in shape) else 0


def vectorize_last(sch: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Vectorize the last loop of `block` where `lanes` divides it."""
    loop = sch.get_loops(block)[-1]
    extent = sch.get(loop).extent
    if isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0:
        _, inner = sch.split(loop, [None, lanes])
        sch.vectorize(inner)


def take_vectors(sch: s_tir.Schedule, loop: LoopRV, lanes: int | s_tir.schedule.ExprRV) -> None:
    """Take an innermost `loop` of any length in vectors of `lanes` numbers, a power of two, and a rest."""
    sch.annotate(loop, LANES, lanes)


def contiguous_axes(block: s_tir.SBlock) -> int:
    """Return how many of the last axes of `block` walk numbers that lie one behind the other, where they are used."""
    axes = [iter_var.var for iter_var in block.iter_vars]
    extents = [iter_var.dom.extent for iter_var in block.iter_vars]
    accesses = [(access.source, [part.min for part in access.region]) for access in (*block.reads, *block.writes)]
    count = 1
    while count < len(axes) and all(_walked(*access, axes, extents, count + 1) for access in accesses):
        count += 1
    return count


def _walked(
    buffer: tirx.Buffer, indices: list[tirx.Expr], axes: list[tirx.Var], extents: list[tirx.Expr], count: int
) -> bool:
    """Return whether the last `count` axes walk `buffer` number by number, or not at all."""
    last = axes[-count:]
    if not any(depends(index, axis) for index in indices for axis in last):
        return True
    if len(indices) < count or any(depends(index, axis) for index in indices[:-count] for axis in last):
        return False
    for place, (index, axis) in enumerate(zip(indices[-count:], last, strict=True)):
        if place and not (isinstance(index, tirx.Var) and index.same_as(axis)):
            return False
        if place and not structural_equal(buffer.shape[-count:][place], extents[-count:][place]):
            return False
        others = [other for other in last if not other.same_as(axis)]
        steps = tvm.sym.detect_linear_equation(index, [axis])
        if not steps or not structural_equal(steps[0], tirx.const(1, axis.ty.dtype)):
            return False
        if any(depends(index, other) for other in others):
            return False
    return True


def depends(index: tirx.Expr, axis: tirx.Var) -> bool:
    """Return whether `axis` occurs in `index`."""
    return any(axis.same_as(var) for var in tirx.analysis.undefined_vars(index, []))


def unroll_and_vectorize(sch: s_tir.Schedule, loops: list[LoopRV], lane: LoopRV) -> None:
    """Unroll `loops` and vectorize `lane`."""
    for loop in loops:
        sch.unroll(loop)
    sch.vectorize(lane)


def spread_over_cache(sch: s_tir.Schedule, block: SBlockRV) -> None:
    """Give each row of what `block` writes an odd number of cache lines: rows then fall on all sets of the cache."""
    line = 512 // tvm.DataType(str(sch.get(block).writes[0].source.dtype)).bits
    sch.storage_align(block, 0, -2, 2 * line, line)


def inline_into(sch: s_tir.Schedule, block: SBlockRV, keep: SBlockRV | None = None) -> None:
    """Inline the elementwise blocks that `block` reads, up to `keep`."""
    for producer in sch.get_producers(block):
        if (keep is None or not sch.get(producer).same_as(sch.get(keep))) and is_spatial(sch, producer):
            inline_into(sch, producer, keep)
            sch.compute_inline(producer)


def largest_divisor(extent: int, limit: int) -> int:
    """Return the largest divisor of `extent` that is at most `limit`."""
    return divisors(extent, limit)[-1]
