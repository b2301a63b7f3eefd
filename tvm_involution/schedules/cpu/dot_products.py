# SPDX-License-Identifier: Apache-2.0
"""Which instruction for dot products multiplies by a packed weight."""

from __future__ import annotations

from types import ModuleType

from tvm import tirx

from ..packed_weight import PackedWeight
from . import dot_bf16, dot_int8


def dot_product(weight: PackedWeight) -> ModuleType | None:
    """Return the file of the intrinsic for such a weight, registered; None where one value is multiplied at a time."""
    dot = {dot_bf16.PAIR: dot_bf16, dot_int8.VALUES: dot_int8}.get(weight.values)
    if dot is not None:
        dot.register()
    return dot


def register_dot_products(func: tirx.PrimFunc) -> None:
    """Register what recorded schedules of `func` may name."""
    dtypes = {str(buffer.dtype) for buffer in func.params}
    for dtype, dot in (("bfloat16", dot_bf16), ("int8", dot_int8)):
        if dtype in dtypes:
            dot.register()
