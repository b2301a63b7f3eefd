# SPDX-License-Identifier: Apache-2.0
"""Windows of feature maps, where they are written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from .operation import Operation, constant, shape_of
from .shapes import pad


def im2col(
    operation: Operation,
    x: relax.Expr,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> relax.Expr:
    """(..., C, H, W) -> (..., C * KH * KW, OH * OW): the windows, as `nn.Unfold` writes them."""
    *lead, channels, height, width = shape_of(x)
    x = operation.reshape(x, (*(lead or [1]), channels, height, width))
    x = operation.emit(pad(operation, x, (padding[1], padding[1], padding[0], padding[0])))
    rows, columns = (
        (size + 2 * padding[axis] - dilation[axis] * (kernel_size[axis] - 1) - 1) // stride[axis] + 1
        for axis, size in enumerate((height, width))
    )
    if list(kernel_size) == list(stride) and list(dilation) == [1, 1]:
        return _tiles(operation, x, kernel_size, (rows, columns))

    for axis, count in ((2, rows), (4, columns)):
        side = 0 if axis == 2 else 1
        places = np.arange(kernel_size[side])[:, None] * dilation[side] + np.arange(count) * stride[side]
        x = operation.emit(relax.op.take(x, constant(places), axis, mode="clip"))
    ordered = operation.emit(relax.op.permute_dims(x, [0, 1, 2, 4, 3, 5]))
    return operation.reshape(ordered, operation.shape)


def _tiles(operation: Operation, x: relax.Expr, size: Sequence[int], count: Sequence[int]) -> relax.Expr:
    """Windows that lie side by side, as patches: axes that are split and change places."""
    batch, channels, height, width = shape_of(x)
    rows, columns = (number * edge for number, edge in zip(count, size, strict=True))
    if (rows, columns) != (height, width):
        x = operation.emit(pad(operation, x, (0, columns - width, 0, rows - height)))
    split = operation.reshape(x, (batch, channels, count[0], size[0], count[1], size[1]))
    ordered = operation.emit(relax.op.permute_dims(split, [0, 1, 3, 5, 2, 4]))
    return operation.reshape(ordered, operation.shape)
