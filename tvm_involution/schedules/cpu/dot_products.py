# SPDX-License-Identifier: Apache-2.0
"""Which instruction for dot products multiplies by a packed weight."""

from __future__ import annotations

import tvm
from tvm import tirx

from ..packed_weight import PackedWeight
from . import dot_bf16, dot_int8
from .amx_gemm import register_tiles
from .dot_product import DotProduct


def dot_product(weight: PackedWeight, target: tvm.target.Target) -> DotProduct | None:
    """Return the instruction for such a weight, its intrinsic registered; None for one value at a time."""
    if weight.values == 1:
        return None
    dtype = str(weight.buffer.dtype)
    dot = dot_bf16.DOT_BF16 if dtype == "bfloat16" else dot_int8.dot_int8(target, dtype)
    assert dot is not None, f"a weight of {dtype} packed in {weight.values} for a CPU without a dot product"
    dot.register()
    return dot


def register_dot_products(func: tirx.PrimFunc, target: tvm.target.Target) -> None:
    """Register what recorded schedules of `func` may name."""
    for dtype in {str(buffer.dtype) for buffer in func.params}:
        dot = dot_bf16.DOT_BF16 if dtype == "bfloat16" else dot_int8.dot_int8(target, dtype)
        if dot is not None:
            dot.register()
    register_tiles(func, target)
