# SPDX-License-Identifier: Apache-2.0
"""Prefetch the next pack of a packed convolution's weights while the tiles of this one are multiplied.

A network's weights don't fit the caches: RedNet-50's 62 MB come from memory for every picture. A core multiplies with
one pack of output channels after the other, so the address of what comes next is known long before: each step of the
sum asks for the line of its own step in the next pack.
"""

from __future__ import annotations

import itertools
import math

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_map, structural_walk

from .programs import rewrite_cpu_programs

# fewer weights than this stay in the caches, from the first tile on
_BYTES = 64 << 10
_LINE = 64
# the blocks that multiply by packed weights
_SUMS = ("conv2d_update", "strassen_update")
# llvm.prefetch: to read, into the second-level cache, data
_READ, _LEVEL_2, _DATA = 0, 2, 1


@tvm.transform.module_pass(opt_level=0, name="PrefetchWeights")
class PrefetchWeights:
    """Insert prefetches before the sums of `te.conv2d_packed`, `matmul_packed` and `conv2d_strassen` on CPUs."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, _prefetch)


def _prefetch(func: tirx.PrimFunc) -> tirx.PrimFunc:
    nests = _nests(func.body, ())
    if len(nests) != 1:
        return func
    loops, realize = nests[0]
    weight = realize.block.reads[-1].source
    serial = [i for i, loop in enumerate(loops) if loop.kind == tirx.ForKind.SERIAL]
    if not serial or not _is_worth_it(weight):
        return func
    home = loops[serial[-1]]
    ahead = _next_lines(realize, weight, loops[serial[-1] + 1 :])

    def insert(loop: tirx.For) -> tirx.For:
        if not loop.loop_var.same_as(home.loop_var):
            return loop
        body = tirx.SeqStmt([*ahead, loop.body])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return func.with_body(structural_map(func.body, (tirx.For, insert)))


def _nests(stmt: tirx.Stmt, loops: tuple[tirx.For, ...]) -> list[tuple[tuple[tirx.For, ...], s_tir.SBlockRealize]]:
    """Return the updates of the sums in `stmt`, each with the loops around it."""
    if isinstance(stmt, tirx.For):
        return _nests(stmt.body, (*loops, stmt))
    if isinstance(stmt, tirx.SeqStmt):
        return [nest for part in stmt.seq for nest in _nests(part, loops)]
    if isinstance(stmt, s_tir.SBlockRealize):
        if stmt.block.name_hint in _SUMS:
            return [(loops, stmt)]
        return _nests(stmt.block.body, loops)
    return []


def _is_worth_it(weight: tirx.Buffer) -> bool:
    return (
        len(weight.shape) in (5, 6)
        and int(weight.shape[0]) > 1
        and math.prod(int(size) for size in weight.shape) * _bytes(weight) >= _BYTES
    )


def _next_lines(realize: s_tir.SBlockRealize, weight: tirx.Buffer, inner: tuple[tirx.For, ...]) -> list[tirx.Stmt]:
    """Return the prefetches of what the loops `inner` read of `weight`, a pack further on.

    The weight is (packs, kernel height, kernel width, steps, lanes[, 2]). Behind the last pack the addresses are of no
    array, which a prefetch does not mind.
    """
    values = {iter_var.var: value for iter_var, value in zip(realize.block.iter_vars, realize.iter_values, strict=True)}
    point = [_substitute(part.min, values) for part in realize.block.reads[-1].region][:4]
    steps = [loop for loop in inner if any(_uses(index, loop.loop_var) for index in point[1:])]
    still = {loop.loop_var: tirx.const(0, "int64") for loop in inner if loop not in steps}
    line_bytes = math.prod(int(size) for size in weight.shape[4:]) * _bytes(weight)
    lanes = int(weight.shape[4]) * _LINE // line_bytes
    prefetches = []
    for numbers in itertools.product(*(range(int(loop.extent)) for loop in steps)):
        moving = {loop.loop_var: tirx.const(n, "int64") for loop, n in zip(steps, numbers, strict=True)}
        pack, *rest = (_substitute(index, {**still, **moving}) for index in point)
        for lane in range(0, int(weight.shape[4]), max(1, lanes)):
            indices = [pack + 1, *rest, tirx.const(lane, "int64"), *([0] * (len(weight.shape) - 5))]
            address = tirx.address_of(tirx.BufferLoad(weight, indices))
            flags = (tirx.const(flag, "int32") for flag in (_READ, _LEVEL_2, _DATA))
            prefetches.append(tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, *flags)))
    return prefetches


def _substitute(expr: tirx.PrimExpr, values: dict[tirx.Var, tirx.PrimExpr]) -> tirx.PrimExpr:
    return structural_map(expr, (tirx.Var, lambda var: values.get(var, var)))


def _uses(expr: tirx.PrimExpr, var: tirx.Var) -> bool:
    found = []
    structural_walk(expr, (tirx.Var, lambda other: found.append(other) if other.same_as(var) else None))
    return bool(found)


def _bytes(buffer: tirx.Buffer) -> int:
    return tvm.DataType(str(buffer.dtype)).bits // 8
