# SPDX-License-Identifier: Apache-2.0
"""Which instruction for dot products multiplies by a packed weight."""

from __future__ import annotations

import re

import tvm

from ..packed_weight import PackedWeight
from . import dot_bf16, dot_int8
from .amx import AmxTile
from .dot_product import DotProduct

_NAMES = re.compile(rb'"(tvm_involution\.\w+)"')


def dot_product(weight: PackedWeight, target: tvm.target.Target) -> DotProduct | None:
    """Return the instruction for such a weight, its intrinsic registered; None for one value at a time."""
    if weight.values == 1:
        return None
    dtype = str(weight.buffer.dtype)
    dot = dot_bf16.DOT_BF16 if dtype == "bfloat16" else dot_int8.dot_int8(target, dtype)
    assert dot is not None, f"a weight of {dtype} packed in {weight.values} for a CPU without a dot product"
    dot.register()
    return dot


def register_named(record: bytes) -> None:
    """Register the intrinsics that the JSON of a recorded schedule names: TVM reads none whose intrinsics it lacks."""
    names = {name.decode() for name in _NAMES.findall(record)}
    if not names:
        return
    for dot in (dot_bf16.DOT_BF16, *dot_int8.all_dot_products()):
        if dot.intrinsic in names:
            dot.register()
    if dot_bf16.PIXELS in names:
        dot_bf16.register()
    for name in names:
        if (tile := AmxTile.named(name)) is not None:
            tile.register()
