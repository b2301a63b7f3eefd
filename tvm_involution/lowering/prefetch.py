# SPDX-License-Identifier: Apache-2.0
"""What the passes that insert prefetches share."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tvm import s_tir, tirx
from tvm_ffi import structural_map, structural_walk

from ..te.blocks import Block

LINE = 64
"""bytes of a line of the caches"""
LEVEL_1, LEVEL_2 = 3, 2
"""the cache to bring lines to, as `llvm.prefetch` counts"""
# the blocks that multiply by packed weights, as schedules leave them: without the start of their sums, and with "_o"
# where an intrinsic multiplies
_SUMS = {f"{block.value}_update{part}" for block in (Block.CONV2D, Block.STRASSEN) for part in ("", "_o")}
_READ, _DATA = 0, 1


@dataclass(frozen=True)
class Nest:
    """A block of a scheduled program and the loops around it, the outermost first."""

    loops: tuple[tirx.For, ...]
    realize: s_tir.SBlockRealize

    def point(self, region: tirx.BufferRegion) -> list[tirx.PrimExpr]:
        """Return where a region of the block begins, by the loops' variables."""
        iter_vars = self.realize.block.iter_vars
        values = {iter_var.var: value for iter_var, value in zip(iter_vars, self.realize.iter_values, strict=True)}
        return [_substitute(part.min, values) for part in region.region]


def nests(stmt: tirx.Stmt, loops: tuple[tirx.For, ...] = ()) -> list[Nest]:
    """Return the innermost blocks in `stmt`, in their order."""
    if isinstance(stmt, tirx.For):
        return nests(stmt.body, (*loops, stmt))
    if isinstance(stmt, tirx.SeqStmt):
        return [nest for part in stmt.seq for nest in nests(part, loops)]
    if isinstance(stmt, s_tir.SBlockRealize):
        return nests(stmt.block.body, loops) if not stmt.block.iter_vars else [Nest(loops, stmt)]
    return []


def sums_of(found: Sequence[Nest]) -> Nest | None:
    """Return the products by packed weights among a program's nests; None where there are none, or several."""
    sums = [nest for nest in found if nest.realize.block.name_hint in _SUMS]
    return sums[0] if len(sums) == 1 else None


def moving(loops: Sequence[tirx.For], indices: Sequence[tirx.PrimExpr]) -> list[tirx.For]:
    """Return those of `loops` that `indices` depend on."""
    return [loop for loop in loops if any(_uses(index, loop.loop_var) for index in indices)]


def turns(
    indices: Sequence[tirx.PrimExpr], loops: Sequence[tirx.For], running: Sequence[tirx.For]
) -> Iterator[list[tirx.PrimExpr]]:
    """Yield `indices` at each turn of the loops `running`, the others of `loops` at their first."""
    first = {loop.loop_var: tirx.const(0, "int64") for loop in loops}
    for numbers in itertools.product(*(range(int(loop.extent)) for loop in running)):
        at = {loop.loop_var: tirx.const(n, "int64") for loop, n in zip(running, numbers, strict=True)}
        yield [_substitute(index, {**first, **at}) for index in indices]


def prefetch(buffer: tirx.Buffer, indices: Sequence[tirx.PrimExpr | int], level: int) -> tirx.Stmt:
    """Return a prefetch of an element's line, to read it. No address is wrong."""
    flags = (tirx.const(flag, "int32") for flag in (_READ, level, _DATA))
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(tirx.BufferLoad(buffer, indices)), *flags)
    )


def put_before(func: tirx.PrimFunc, home: tirx.For, statements: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
    """Return `func` with `statements` at the begin of each turn of the loop `home`."""

    def insert(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(home.loop_var):
            return loop
        body = tirx.SeqStmt([*statements, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return func.with_body(structural_map(func.body, (tirx.For, insert)))


def _substitute(expr: tirx.PrimExpr, values: Mapping[tirx.Var, tirx.PrimExpr]) -> tirx.PrimExpr:
    return structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


def _uses(expr: tirx.PrimExpr, var: tirx.Var) -> bool:
    found = []
    structural_walk(expr, (tirx.Var, lambda other: found.append(other) if other.same_as(var) else None))
    return bool(found)
