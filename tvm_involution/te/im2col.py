# SPDX-License-Identifier: Apache-2.0
"""The windows of a convolution as the columns of a matrix, for schedules that compute it as one matrix product."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import check_rank, check_window_fits, one_each


@dataclass(frozen=True)
class Windows:
    """The windows of all output pixels; for a linear layer its rows."""

    shape: tuple[int, ...]
    """of the output, without channels: (N, OH, OW), (N, OD, OH, OW) or (M,)"""
    depth: int
    """elements of a window: taps * I, channels innermost"""
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

        return te.compute((*self.shape, out_channels), value, name=Block.CONV2D_OUT, tag="injective")


@checked
def conv2d_windows(
    x: te.Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Windows:
    """Return the windows of x (N, H, W, I), or of (N, D, H, W, I); along each axis one number.

    Args:
        padding: zeros added before each axis, then behind each: (top, left, bottom, right).
    """
    check_rank("x", x, 4, 5)
    axes = len(x.shape) - 2
    for name, values in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)):
        one_each(name, values, axes, 1)
    one_each("padding", padding, 2 * axes, 0)
    n, *size, channels = (int(d) for d in x.shape)
    before, behind = padding[: len(size)], padding[len(size) :]
    out_size = [
        (extent + first + last - step * (taps - 1) - 1) // moved + 1
        for extent, first, last, step, taps, moved in zip(
            size, before, behind, dilation, kernel_size, stride, strict=True
        )
    ]
    check_window_fits(x, [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel_size, strict=True)], out_size)
    depth, single = math.prod(kernel_size) * channels, math.prod(kernel_size) == 1

    def element(pixel, k, v, vector):
        # all of a vector that stays in a pixel has one bound
        whole = math.gcd(channels, vector)
        bound, offset = k + v // whole * whole, v % whole
        tap, channel = (0, bound + offset) if single else (bound // channels, bound % channels + offset)
        inside = [pixel < n * math.prod(out_size), bound < depth]
        taps = _unravel(tap, kernel_size)
        picture, *places = _unravel(pixel, (n, *out_size))
        for axis, (place, t) in enumerate(zip(places, taps, strict=True)):
            places[axis] = place * stride[axis] + t * dilation[axis] - before[axis]
            if any(padding):
                inside += [places[axis] >= 0, places[axis] < size[axis]]
        return tirx.if_then_else(tirx.all(*inside), x(picture, *places, channel), tirx.const(0, x.dtype))

    return Windows((n, *out_size), depth, channels, element)


@checked
def joined_windows(first: Windows, second: Windows, chunk: Size) -> Windows:
    """Return the windows of two convolutions with the same output one behind the other, for the sum of both.

    Args:
        chunk: elements of a window that a schedule copies together, none of which are of both. The first windows are
            filled up to whole chunks with zeros; so must be its weight.
    """
    if first.shape != second.shape:
        raise UserError(f"joined_windows: outputs must have the same shape, got {first.shape} and {second.shape}")
    chunks = -(-first.depth // chunk)

    def element(pixel, k, v, vector):
        own = first.element(pixel, k, v, vector)
        return tirx.if_then_else(k // chunk < chunks, own, second.element(pixel, k - chunks * chunk, v, vector))

    return Windows(first.shape, chunks * chunk + second.depth, first.channels, element)


def _unravel(index, shape: Sequence[int]) -> list:
    """Return the place along each axis of an element by its number."""
    places: list = []
    for extent in reversed(shape[1:]):
        places.insert(0, index % extent)
        index = index // extent
    return [index, *places]


@checked
def matrix_windows(x: te.Tensor) -> Windows:
    """Return the rows of x (M, I)."""
    check_rank("x", x, 2)
    rows, channels = (int(d) for d in x.shape)

    def element(row, k, v, vector):
        bound = k if channels % vector == 0 else k + v
        return tirx.if_then_else(tirx.all(row < rows, bound < channels), x[row, k + v], tirx.const(0, x.dtype))

    return Windows((rows,), channels, channels, element)


def padded_pixels(pixels: int) -> int:
    """Fill up pixels so that tiles of a power of two divide them: by less than 3 % where there are many."""
    granule = 8 if pixels <= 16 else 32 if pixels <= 1024 else 128
    return -(-pixels // granule) * granule
