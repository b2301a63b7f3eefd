# SPDX-License-Identifier: Apache-2.0
"""Whether a program sums products of two tensors, as convolutions and matrix products do."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_walk

from .rule import blocks_of, is_spatial


def is_contraction(func: tirx.PrimFunc) -> bool:
    """Return whether one of the program's sums, none of them inlined yet, multiplies two tensors."""
    sch = s_tir.Schedule(func)
    return any(_multiplies(sch.get(block)) for block in blocks_of(sch) if not is_spatial(sch, block))


def _multiplies(block: s_tir.SBlock) -> bool:
    return any(
        all(factors := [_read(factor) for factor in (product.a, product.b)]) and factors[0] != factors[1]
        for product in _nodes(block.body, tirx.Mul)
    )


def _read(expression: tirx.PrimExpr) -> set[tirx.Buffer]:
    return {load.source for load in _nodes(expression, tvm.ir.TensorLoad)}


def _nodes(node: tvm.ir.Node, kind: type) -> list[Any]:
    found: list[Any] = []
    structural_walk(node, (kind, found.append))
    return found
