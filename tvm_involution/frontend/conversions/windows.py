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


def col2im(
    operation: Operation,
    x: relax.Expr,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> relax.Expr:
    """(..., C * KH * KW, OH * OW) -> (..., C, H, W): windows laid where `im2col` takes them from, and summed.

    A window is cut into tiles as large as the stride, of which each lies whole steps further: one padded map is added
    for each of them.
    """
    *lead, _, _ = shape_of(x)
    batch, axes = (lead or [1])[0], list(zip(output_size, kernel_size, dilation, padding, stride, strict=True))
    channels = operation.shape[-3]
    counts = [(size + 2 * pads - step * (taps - 1) - 1) // moved + 1 for size, taps, step, pads, moved in axes]
    x = operation.reshape(x, (batch, channels, *kernel_size, *counts))
    tiles, reach = [], []
    for axis, (_, taps, step, _, moved) in enumerate(axes, 2):
        if step > 1:  # zeros between the taps
            x = operation.emit(relax.op.expand_dims(x, axis + 1))
            x = operation.emit(_padded(x, axis + 1, 0, step - 1))
            shape = shape_of(x)
            x = operation.reshape(x, (*shape[:axis], taps * step, *shape[axis + 2 :]))
        x = operation.emit(_padded(x, axis, 0, -taps * step % moved))
        tiles.append(-(-taps * step // moved))
        reach.append(moved)
    # (N, C, tiles, tile, tiles, tile, OH, OW)
    x = operation.reshape(x, (batch, channels, tiles[0], reach[0], tiles[1], reach[1], *counts))
    total = None
    for row in range(tiles[0]):
        for column in range(tiles[1]):
            part = operation.emit(relax.op.strided_slice(x, [2, 4], [row, column], [row + 1, column + 1]))
            part = operation.emit(_padded(part, 6, row, tiles[0] - 1 - row))
            part = operation.emit(_padded(part, 7, column, tiles[1] - 1 - column))
            total = part if total is None else operation.emit(relax.op.add(total, part))
    laid = [count + tile - 1 for count, tile in zip(counts, tiles, strict=True)]
    total = operation.reshape(total, (batch, channels, *reach, *laid))
    total = operation.emit(relax.op.permute_dims(total, [0, 1, 4, 2, 5, 3]))
    total = operation.reshape(total, (batch, channels, laid[0] * reach[0], laid[1] * reach[1]))
    after = [
        size + pads - count * moved for size, pads, count, moved in zip(output_size, padding, laid, reach, strict=True)
    ]
    total = operation.emit(pad(operation, total, (-padding[1], after[1], -padding[0], after[0])))
    return operation.reshape(total, operation.shape)


def _padded(x: relax.Expr, axis: int, before: int, after: int) -> relax.Expr:
    widths = [0] * (2 * x.ty.ndim)
    widths[2 * axis : 2 * axis + 2] = before, after
    return relax.op.nn.pad(x, widths, "constant", 0.0) if before or after else x


def _tiles(operation: Operation, x: relax.Expr, size: Sequence[int], count: Sequence[int]) -> relax.Expr:
    """Windows that lie side by side, as patches: axes that are split and change places."""
    batch, channels, height, width = shape_of(x)
    rows, columns = (number * edge for number, edge in zip(count, size, strict=True))
    if (rows, columns) != (height, width):
        x = operation.emit(pad(operation, x, (0, columns - width, 0, rows - height)))
    split = operation.reshape(x, (batch, channels, count[0], size[0], count[1], size[1]))
    ordered = operation.emit(relax.op.permute_dims(split, [0, 1, 3, 5, 2, 4]))
    return operation.reshape(ordered, operation.shape)
