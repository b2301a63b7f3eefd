# SPDX-License-Identifier: Apache-2.0
"""The argument checks of every expression in this folder."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te

from ..errors import UserError

Pair = int | Sequence[int]
LAYOUTS = ("NCHW", "NHWC")


def as_pair(name: str, value: Pair, minimum: int) -> tuple[int, int]:
    """Return an int or a pair (rows, columns) as a pair.

    Raises:
        UserError: not one or two whole numbers, or below `minimum`.
    """
    pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(pair) != 2 or min(pair) < minimum:
        raise UserError(f"{name} must be an int or a pair of at least {minimum}, got {value!r}")
    return pair[0], pair[1]


def check_layout(layout: str) -> None:
    """Raise `UserError` where `layout` is neither NCHW nor NHWC."""
    if layout not in LAYOUTS:
        raise UserError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")


def check_rank(name: str, tensor: te.Tensor, *ranks: int) -> None:
    """Raise `UserError` where `tensor` has none of `ranks`."""
    if len(tensor.shape) not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise UserError(f"{name} must have rank {wanted}, got shape {shape_text(tensor)}")


def check_same_dtype(**tensors: te.Tensor) -> None:
    """Raise `UserError` where the tensors' dtypes differ."""
    if len({str(tensor.dtype) for tensor in tensors.values()}) > 1:
        got = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise UserError(f"all inputs must have one dtype, got {got}")


def shape_text(tensor: te.Tensor) -> str:
    """Return the shape of `tensor` for a message, as `[1, 64, 56, 56]`."""
    return f"[{', '.join(str(d) for d in tensor.shape)}]"
