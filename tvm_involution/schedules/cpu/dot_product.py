# SPDX-License-Identifier: Apache-2.0
"""What a rule must know of an instruction for dot products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class DotProduct:
    """An instruction, or a few, that add products of `values` pairs of numbers to each of `sums`."""

    intrinsic: str
    """name of the tensor intrinsic"""
    sums: int
    """of a vector"""
    values: int
    """which lie side by side in a packed weight"""
    llvm_function: str
    """for the annotation `pragma_import_llvm` of a loop around the intrinsic"""
    register: Callable[[], None]
    """tell TVM of the intrinsic, when it is first wanted: its text takes a second to read"""
