# SPDX-License-Identifier: Apache-2.0
"""Whether a program sums products of two tensors, as convolutions and matrix products do."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from .rule import blocks_of, is_spatial, nodes_of


def is_contraction(func: tirx.PrimFunc) -> bool:
    """Return whether one of the program's sums, none of them inlined yet, multiplies two tensors."""
    sch = s_tir.Schedule(func)
    return any(_multiplies(sch.get(block)) for block in blocks_of(sch) if not is_spatial(sch, block))


def _multiplies(block: s_tir.SBlock) -> bool:
    return any(
        all(factors := [_read(factor) for factor in (product.a, product.b)]) and factors[0] != factors[1]
        for product in nodes_of(block.body, tirx.Mul)
    )


def _read(expression: tirx.PrimExpr) -> set[tirx.Buffer]:
    return {load.source for load in nodes_of(expression, tvm.ir.TensorLoad)}
