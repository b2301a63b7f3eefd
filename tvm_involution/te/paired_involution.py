# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and aggregation in bfloat16 by dot products of two: neighbouring taps of a row in one instruction.

Quantized pixels are aggregated so too: a byte is a whole number that bfloat16 holds exactly.

A CPU's dot product of bfloat16 adds two products to each sum. The pair is two neighbouring columns of the window, so
two neighbouring pixels of a channel lie side by side, the left one in the lower half of 32 bits, and rows of the window
have an even number of taps, where need be with a zero.
"""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .accumulate import cast_sums
from .blocks import Block
from .checks import Pair, as_pair, check_rank, check_shape, check_span, check_window_fits
from .convolution import conv2d_packed, pack_weight
from .involution import involution2d_output_size

CHANNELS = 16
"""of which a group has a multiple: as many sums has a dot product"""


@checked
def pack_paired_span(
    weight: np.ndarray, bias: np.ndarray, kernel_size: Pair, lanes: Size, values: Size = 2
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the span convolution's weight and bias for `paired_spanned_involution2d`.

    Args:
        weight: W2 (G*KH*KW, R, 1, 1).
        bias: (G*KH*KW,), of any dtype.
        lanes: width of a pack.
        values: as of `pack_weight`.

    Returns:
        The weight as from `pack_weight` and the bias (1, 1, 1, L) in float32, L whole packs: both with
        rows of the window filled up to an even number of taps.
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    check_span(weight, bias, kernel_h * kernel_w)

    def even_rows(values: np.ndarray) -> np.ndarray:
        rows = values.reshape(-1, kernel_w, *values.shape[1:])
        rows = np.pad(rows, ((0, 0), (0, kernel_w % 2), *[(0, 0)] * (values.ndim - 1)))
        return rows.reshape(-1, *values.shape[1:])

    packed = pack_weight(even_rows(weight), lanes, values)
    wide = even_rows(bias.astype("float32"))
    return packed, np.pad(wide, (0, packed.shape[0] * lanes - len(wide))).reshape(1, 1, 1, -1)


@checked
def paired_spanned_involution2d(
    x: te.Tensor,
    hidden: te.Tensor,
    span_weight: te.Tensor,
    span_bias: te.Tensor,
    kernel_size: Pair,
    groups: Size,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    span_scale: te.Tensor | None = None,
) -> te.Tensor:
    """`spanned_involution2d` in bfloat16, of which the kernel is rounded, too; sums are float32.

    Args:
        x: (N, H, W, C) in bfloat16, or quantized in uint8 with 0 for zero; a group's channels are a multiple of 16.
        hidden: (N, OH, OW, R), of the dtype of x.
        span_weight: W2 from `pack_paired_span`, as is span_bias; for uint8 in int8.
        span_scale: for uint8, what the sums of the span are multiplied with, laid out as span_bias.

    Returns:
        (N, OH, OW, C) in bfloat16; for uint8 the sums of x as it is, in float32. Blocks: `conv2d`, `conv2d_out`,
        `kernel` (whole packs), `pad_temp` (pairs of padded pixels in uint32; of every other pixel where the stride is
        even), `involution2d` over KH rows and ceil(KW / 2) pairs, `involution2d_cast`.

    Raises:
        UserError: shapes that do not fit, columns that are not neighbours (a dilation).
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    (stride_h, stride_w), (dilation_h, dilation_w) = as_pair("stride", stride, 1), as_pair("dilation", dilation, 1)
    pad_h, pad_w = as_pair("padding", padding, 0)
    for name, tensor in (("x", x), ("hidden", hidden), ("span_bias", span_bias)):
        check_rank(name, tensor, 4)
    quantized = str(x.dtype) == "uint8"
    check_rank("span_weight", span_weight, *((5, 6) if quantized else (6,)))
    if quantized != (span_scale is not None):
        raise UserError("span_scale is for x in uint8, which needs it")
    n, height, width, channels = (int(d) for d in x.shape)
    if dilation_w != 1 or channels % (groups * CHANNELS) or str(x.dtype) not in ("bfloat16", "uint8"):
        raise UserError(
            f"pairs need bfloat16 or uint8, neighbouring columns and groups of a multiple of {CHANNELS} channels, "
            f"got {x.dtype}, dilation {dilation}, {channels} channels in {groups} groups"
        )
    out_h = involution2d_output_size(height, kernel_h, stride_h, pad_h, dilation_h)
    out_w = involution2d_output_size(width, kernel_w, stride_w, pad_w, 1)
    check_window_fits(x, (dilation_h * (kernel_h - 1) + 1, kernel_w), (out_h, out_w))
    check_shape("hidden", hidden, (n, out_h, out_w, hidden.shape[3]))
    pairs = -(-kernel_w // 2)
    spanned = int(span_bias.shape[3])
    if spanned < groups * kernel_h * pairs * 2:
        raise UserError(f"span_bias's {spanned} taps are fewer than {groups} groups of {kernel_h}x{pairs * 2}")

    span = conv2d_packed(hidden, span_weight, spanned, out_dtype="int32" if quantized else "float32")

    def tap_value(b, i, j, k):
        value = span[b, i, j, k]
        if span_scale is not None:
            value = value.astype("float32") * span_scale[0, 0, 0, k]
        return (value + span_bias[0, 0, 0, k]).astype("bfloat16")

    kernel = te.compute(span.shape, tap_value, name=Block.KERNEL)

    def padded(b, row, column, c):
        row, column = row - pad_h, column - pad_w
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return tirx.if_then_else(inside, x[b, row, column, c], tirx.const(0, x.dtype)).astype("float32")

    step = 2 if stride_w % 2 == 0 else 1
    rows = (out_h - 1) * stride_h + (kernel_h - 1) * dilation_h + 1
    columns = (out_w - 1) * stride_w // step + (pairs - 1) * (2 // step) + 1
    source = te.compute(
        (n, rows, columns, channels),
        lambda b, i, j, c: _pair(padded(b, i, j * step, c), padded(b, i, j * step + 1, c)),
        name=Block.PADDED,
        tag="injective,pad",
    )
    u, v = te.reduce_axis((0, kernel_h), "u"), te.reduce_axis((0, pairs), "v")

    def tap(b, i, j, c):
        pixels = source[b, i * stride_h + u * dilation_h, j * (stride_w // step) + v * (2 // step), c]
        first = ((c // (channels // groups) * kernel_h + u) * pairs + v) * 2
        left, right = (kernel[b, i, j, first + side].astype("float32") for side in (0, 1))
        return te.sum(_low(pixels) * left + _high(pixels) * right, axis=[u, v])

    sums = te.compute((n, out_h, out_w, channels), tap, name=Block.INVOLUTION, tag="involution2d")
    return cast_sums(sums, "float32" if quantized else x.dtype, "involution2d_cast")


# of a pair's bits; a number in bfloat16 is the upper half of the same in float32
_HALF, _UPPER = tirx.const(16, "uint32"), tirx.const(0xFFFF0000, "uint32")


def _pair(low: tirx.PrimExpr, high: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return two float32 numbers that bfloat16 holds as a pair."""
    low, high = (tirx.reinterpret("uint32", value) for value in (low, high))
    return low >> _HALF | (high & _UPPER)


def _low(pair: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.reinterpret("float32", pair << _HALF)


def _high(pair: tirx.PrimExpr) -> tirx.PrimExpr:
    return tirx.reinterpret("float32", pair & _UPPER)
