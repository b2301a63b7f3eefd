# SPDX-License-Identifier: Apache-2.0
"""Norms of rows, whose numbers lie beside each other: group, instance and layer norms; logarithms of a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx, topi

from .accumulate import accumulator_dtype


def norm_rows(
    x: te.Tensor, gamma: te.Tensor, beta: te.Tensor, leading: int, epsilon: float, groups: int | None = None
) -> te.Tensor:
    """Subtract each row's mean, divide by its standard deviation, multiply by gamma and add beta.

    The mean is subtracted before it is squared: of numbers far from zero the variance would be lost otherwise. Half
    types are computed in float32.

    Args:
        x: (*rows, *numbers of a row), of any rank.
        gamma, beta: (*numbers of a row); with groups (channels,).
        leading: how many axes are the rows'.
        groups: the first of the other axes is channels, of which so many groups, which divide them, are rows of their
            own.

    Returns:
        As x. Blocks: `total`, `mean`, `squares`, `scale`, `norm`.

    Source: arXiv 1607.06450 (layer norm), 1803.08494 (group norm).
    """
    shape = [int(d) for d in x.shape]
    lead, numbers = shape[:leading], shape[leading:]
    part = numbers[0] // (groups or 1)
    numbers[0] = part
    rows = [*lead, *([groups] if groups else [])]
    count, dtype = float(math.prod(numbers)), accumulator_dtype(x.dtype)

    def sums(name: str, of):
        axes = [te.reduce_axis((0, extent), "k") for extent in numbers]

        def total(*row):
            first = row[leading] * part + axes[0] if groups else axes[0]
            return te.sum(of(row, x(*row[:leading], first, *axes[1:]).astype(dtype)), axes)

        return te.compute(rows, total, name=name)

    total = sums("total", lambda _, value: value)
    mean = te.compute(rows, lambda *row: total(*row) / tirx.const(count, dtype), name="mean")
    squares = sums("squares", lambda row, value: (value - mean(*row)) * (value - mean(*row)))
    scale = te.compute(
        rows,
        lambda *row: tirx.rsqrt(squares(*row) / tirx.const(count, dtype) + tirx.const(epsilon, dtype)),
        name="scale",
    )

    def normed(*index):
        row = (*index[:leading], *([index[leading] // part] if groups else []))
        own = (index[leading],) if groups else index[leading:]
        value = (x(*index).astype(dtype) - mean(*row)) * scale(*row)
        return (value * gamma(*own).astype(dtype) + beta(*own).astype(dtype)).astype(x.dtype)

    return te.compute(shape, normed, name="norm")


def log_softmax_rows(x: te.Tensor) -> te.Tensor:
    """Return the logarithm of each row's softmax; that of the sum is taken once a row.

    Args:
        x: (*rows, numbers of a row), in float32 or float64.

    Returns:
        As x. Blocks: `greatest`, `total`, `logarithm`, `log_softmax`.
    """
    *rows, count = (int(d) for d in x.shape)
    k = te.reduce_axis((0, count), "k")
    greatest = te.compute(rows, lambda *row: te.max(x(*row, k), k), name="greatest")
    k = te.reduce_axis((0, count), "k")
    total = te.compute(rows, lambda *row: te.sum(tirx.exp(x(*row, k) - greatest(*row)), k), name="total")
    logarithm = te.compute(rows, lambda *row: tirx.log(total(*row)), name="logarithm")
    # the greatest first: of large numbers its difference is exact
    return te.compute(
        x.shape, lambda *index: x(*index) - greatest(*index[:-1]) - logarithm(*index[:-1]), name="log_softmax"
    )


def mean_squares(x: te.Tensor, middle: te.Tensor, axes: Sequence[int]) -> te.Tensor:
    """Return the mean along `axes` of the squared differences of x and `middle`, whose type it has.

    Args:
        x: of any rank and type.
        middle: of the same rank, with 1 for axes along which it is the same.

    Returns:
        As x, with 1 for `axes`.
    """
    apart = topi.subtract(topi.cast(x, middle.dtype), middle)
    squares = topi.multiply(apart, apart)
    if not axes:
        return squares
    count = math.prod(int(x.shape[axis]) for axis in axes)
    return topi.divide(topi.sum(squares, list(axes), keepdims=True), tirx.const(float(count), middle.dtype))
