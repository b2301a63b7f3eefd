# SPDX-License-Identifier: Apache-2.0
"""The windows of a convolution as the columns of a matrix, for schedules that compute it as one matrix product."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx

from ..arguments import checked


@dataclass(frozen=True)
class Windows:
    """The windows of all output pixels; for a linear layer its rows."""

    shape: tuple[int, ...]
    """of the output, without channels: (N, OH, OW) or (M,)"""
    depth: int
    """elements of a window: KH * KW * I, channels innermost"""
    channels: int
    element: Callable[[tirx.Expr, tirx.Expr, tirx.Expr | int, int], tirx.Expr]
    """(pixel, k, v, vector) -> element k + v of the pixel's window, 0 outside; v is below `vector`, which divides k"""

    @property
    def pixels(self) -> int:
        """Output pixels of the batch."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    def output(self, sums: te.Tensor, out_channels: int, dtype: str) -> te.Tensor:
        """Return sums (pixels, channels), both perhaps filled up, as `(*shape, out_channels)` in `dtype`."""

        def value(*index):
            pixel = index[0]
            for position, extent in zip(index[1:-1], self.shape[1:], strict=True):
                pixel = pixel * extent + position
            return sums[pixel, index[-1]].astype(dtype)

        return te.compute((*self.shape, out_channels), value, name="conv2d_out", tag="injective")


@checked
def conv2d_windows(
    x: te.Tensor,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> Windows:
    """Return the windows of x (N, H, W, I); `padding` zeros are added at (top, left, bottom, right)."""
    n, h, w, channels = (int(d) for d in x.shape)
    top, left, bottom, right = padding
    out_h = (h + top + bottom - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    out_w = (w + left + right - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    depth = kernel_size[0] * kernel_size[1] * channels

    def element(pixel, k, v, vector):
        # all of a vector that stays in a pixel has one bound
        bound, offset = (k, v) if channels % vector == 0 else (k + v, 0)
        tap, channel = (0, bound + offset) if kernel_size == (1, 1) else (bound // channels, bound % channels + offset)
        row = pixel // out_w % out_h * stride[0] + tap // kernel_size[1] * dilation[0] - top
        column = pixel % out_w * stride[1] + tap % kernel_size[1] * dilation[1] - left
        inside = [pixel < n * out_h * out_w, bound < depth]
        if any(padding):
            inside += [row >= 0, row < h, column >= 0, column < w]
        value = x[pixel // (out_h * out_w), row, column, channel]
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, x.dtype))

    return Windows((n, out_h, out_w), depth, channels, element)


@checked
def matrix_windows(x: te.Tensor) -> Windows:
    """Return the rows of x (M, I)."""
    rows, channels = (int(d) for d in x.shape)

    def element(row, k, v, vector):
        bound = k if channels % vector == 0 else k + v
        return tirx.if_then_else(tirx.all(row < rows, bound < channels), x[row, k + v], tirx.const(0, x.dtype))

    return Windows((rows,), channels, channels, element)


def padded_pixels(pixels: int) -> int:
    """Fill up pixels so that tiles of a power of two divide them: by less than 3 % where there are many."""
    granule = 8 if pixels <= 16 else 32 if pixels <= 1024 else 128
    return -(-pixels // granule) * granule
