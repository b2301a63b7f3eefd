# SPDX-License-Identifier: Apache-2.0
"""One of several expressions, by an index that a schedule unrolls to a constant."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx


def select(index: tirx.PrimExpr, count: int, option: Callable[[int], tirx.PrimExpr]) -> tirx.PrimExpr:
    """Return `option(index)` for an index of 0 to `count` - 1."""
    result = option(count - 1)
    for number in range(count - 2, -1, -1):
        result = tirx.Select(index == number, option(number), result)
    return result
