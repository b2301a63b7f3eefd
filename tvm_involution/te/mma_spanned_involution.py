# SPDX-License-Identifier: Apache-2.0
"""Involution with its kernel's span convolution as the matrix product that NVIDIA's tensor cores do.

The rows of an instruction (`te.mma_convolution`) are a slab: one row of the window, of one or more groups, so that a
schedule can make the kernels of a box of pixels one window row at a time. Its columns are up to 8 pixels of an image's
row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import Pair, as_pair, check_rank, check_shape, check_span
from .involution import check_hidden, involution2d
from .mma_convolution import COLUMNS, LANES, ROWS, MmaFragments, pack_weight_mma


@dataclass(frozen=True)
class Slab:
    """How one row of the window of some groups fills the rows of an instruction."""

    groups: int
    taps: int
    """of a group, filled up"""


def slab_of(groups: int, kernel_columns: int) -> Slab | None:
    """Return the slab of as many groups as fit and divide `groups`; None where not even one row fits."""
    fitting = [n for n in (8, 4, 2, 1) if groups % n == 0 and n * kernel_columns <= ROWS]
    return Slab(fitting[0], ROWS // fitting[0]) if fitting else None


def _slab(groups: int, kernel_columns: int) -> Slab:
    slab = slab_of(groups, kernel_columns)
    if slab is None:
        raise UserError(f"kernel_size must have at most {ROWS} columns, got {kernel_columns}")
    return slab


def column_pixels(out_columns: int) -> int:
    """Return how many neighbouring pixels of an image's row share an instruction: 8, or 5 to 7 that divide the row."""
    return next((n for n in (8, 7, 6, 5) if out_columns % n == 0), COLUMNS)


@checked
def pack_span_mma(
    weight: np.ndarray, bias: np.ndarray, kernel_size: Pair, fragments: MmaFragments
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the span convolution's weight and bias for `spanned_involution2d_mma`.

    Args:
        weight: W2 (G*KH*KW, R, 1, 1), rows in order (group, row, column); KW at most 16.
        bias: (G*KH*KW,), of any dtype.

    Returns:
        The weight (slabs * KH, chunks of R, 1, steps, 32 lanes, weights a lane), as `pack_weight_mma` does it; the bias
        (slabs * KH, 16) in float32.
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    check_span(weight, bias, kernel_h * kernel_w)
    slab = _slab(weight.shape[0] // (kernel_h * kernel_w), kernel_w)

    def rows(array: np.ndarray) -> np.ndarray:
        """Order (G*KH*KW, ...) by slab, row of the window, group and column; zeros where no column is."""
        split = array.reshape(-1, slab.groups, kernel_h, kernel_w, *array.shape[1:]).swapaxes(1, 2)
        empty = [(0, slab.taps - kernel_w if axis == 3 else 0) for axis in range(split.ndim)]
        # a lane holds the columns v and v + taps / 2
        halves = np.pad(split, empty).reshape(*split.shape[:3], 2, slab.taps // 2, *array.shape[1:])
        return halves.swapaxes(3, 4).reshape(-1, *array.shape[1:])

    return pack_weight_mma(rows(weight), fragments, 1), rows(bias.astype("float32")).reshape(-1, ROWS)


@checked
def spanned_involution2d_mma(
    x: te.Tensor,
    hidden: te.Tensor,
    span_weight: te.Tensor,
    span_bias: te.Tensor,
    kernel_size: Pair,
    groups: Size,
    fragments: MmaFragments,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> te.Tensor:
    """Span the kernel, aggregate, in NHWC; the kernel, which exists only inside, stays in float32.

    Args:
        x: (N, H, W, C).
        hidden: (N, OH, OW, R), the reduced and activated pixels, of the dtype of x.
        span_weight: W2 from `pack_span_mma`, as is span_bias.
        kernel_size: (KH, KW), KW at most 16.
        groups: G.
        fragments: those that W2 was packed for.

    Returns:
        (N, OH, OW, C), of the dtype of x. Blocks: `columns` (what the lanes hold of `hidden`), `mma` (the sums, as the
        lanes hold them), `kernel` (with the bias, a row of the window outermost), `taps` (in the order of
        `involution2d`), those of `involution2d`.

    Raises:
        UserError: shapes that do not fit.
    """
    f = fragments
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    slab = _slab(groups, kernel_w)
    check_rank("x", x, 4)
    check_hidden(x, hidden, kernel_size, stride, padding, dilation)
    batch, out_h, out_w, channels = (int(d) for d in hidden.shape)
    packs, chunks = groups // slab.groups * kernel_h, -(-channels // f.chunk)
    check_shape("span_bias", span_bias, (packs, ROWS))
    check_shape("span_weight", span_weight, (packs, chunks, 1, f.steps, LANES, f.weights))
    pixels = column_pixels(out_w)
    blocks = -(-out_w // pixels)

    def pixel(row, block, chunk, lane, v):
        own, k = lane // 4 % 2 * 4 + lane // 8, chunk * f.chunk + lane % 4 * f.values
        # all of a vector that stays in a pixel has one bound
        bound = k if channels % f.values == 0 else k + v
        column = block * pixels + own
        inside = tirx.all(own < pixels, column < out_w, bound < channels)
        value = hidden[row // out_h, row % out_h, column, k + v]
        return tirx.if_then_else(inside, value, tirx.const(0, hidden.dtype))

    # an image's rows one after another, so that a lane's place has as few axes as the instruction's description
    rows = batch * out_h
    columns = te.compute((rows, blocks, chunks, LANES, f.values), pixel, name=Block.COLUMNS, tag="injective")
    chunk, step = te.reduce_axis((0, chunks), "chunk"), te.reduce_axis((0, f.steps), "step")
    quad, e = te.reduce_axis((0, 4), "quad"), te.reduce_axis((0, f.registers * f.pair), "element")

    def product(lane, pack, row, block, r):
        left = span_weight[pack, chunk, 0, step, lane // 4 * 4 + quad, (e // f.pair * 2 + r // 2) * f.pair + e % f.pair]
        right = columns[row, block, chunk, (lane % 4 * 2 + r % 2) * 4 + quad, step * f.registers * f.pair + e]
        return te.sum(left.astype("float32") * right.astype("float32"), axis=[chunk, step, quad, e])

    mma = te.compute((LANES, packs, rows, blocks, 4), product, name=Block.MMA, tag="conv2d_mma")

    def value(b, u, g, i, block, own, v):
        # a lane's four sums are half a row of taps and half a column of pixels apart: neighbouring lanes then have
        # neighbouring taps of neighbouring pixels, so that all can store at once
        half = slab.taps // 2
        line, pack = g % slab.groups * half + v % half, g // slab.groups * kernel_h + u
        sums = mma[line * 4 + own % 4, pack, b * out_h + i, block, v // half * 2 + own // 4]
        return sums + span_bias[pack, line * 2 + v // half]

    shape = (batch, kernel_h, groups, out_h, blocks, pixels, kernel_w)
    kernel = te.compute(shape, value, name=Block.KERNEL, tag="injective")
    taps = te.compute(
        (batch, out_h, out_w, groups, kernel_h, kernel_w),
        lambda b, i, j, g, u, v: kernel[b, u, g, i, j // pixels, j % pixels, v],
        name=Block.TAPS,
        tag="injective",
    )
    return involution2d(x, taps, stride, padding, dilation, "NHWC")
