# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution in NHWC: each channel by a window of its own, so vectors of channels by vectors of weights."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .accumulate import accumulator_dtype
from .blocks import Block
from .checks import check_array, check_rank, check_window_fits, one_each, shape_text


@checked
def pack_depthwise_weight(weight: np.ndarray, lanes: Size) -> np.ndarray:
    """Pack a depthwise convolution's weight (C, 1, KH, KW) to (KH, KW, C filled up to a multiple of `lanes`)."""
    check_array("weight", weight, 4)
    channels = weight.shape[0]
    packed = np.zeros((*weight.shape[2:], -(-channels // lanes) * lanes), weight.dtype)
    packed[..., :channels] = weight[:, 0].transpose(1, 2, 0)
    return packed


@checked
def depthwise_conv2d(
    x: te.Tensor,
    weight: te.Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    strip: Size = 1,
) -> te.Tensor:
    """Convolve each channel; sums are kept in float32 for the half types.

    Args:
        x: (N, H, W, C).
        weight: from `pack_depthwise_weight`.
        padding: zeros added at (top, left, bottom, right).
        strip: rows of sums are filled up to a multiple of so many pixels, for a schedule that takes them together.

    Returns:
        (N, OH, OW, C) in x's type. Blocks: `pad_temp` where there is padding or something is filled up,
        `depthwise_conv2d` (the sums, filled up), `depthwise_conv2d_out` (the wanted ones).
    """
    check_rank("x", x, 4)
    check_rank("weight", weight, 3)
    one_each("stride", stride, 2, 1)
    one_each("padding", padding, 4, 0)
    one_each("dilation", dilation, 2, 1)
    n, height, width, channels = (int(d) for d in x.shape)
    kernel_h, kernel_w, filled = (int(d) for d in weight.shape)
    if filled < channels:
        raise UserError(f"weight must have a window for each of x's {channels} channels, got {shape_text(weight)}")
    top, left, bottom, right = padding
    span_h, span_w = dilation[0] * (kernel_h - 1) + 1, dilation[1] * (kernel_w - 1) + 1
    out_h = (height + top + bottom - span_h) // stride[0] + 1
    out_w = (width + left + right - span_w) // stride[1] + 1
    check_window_fits(x, (span_h, span_w), (out_h, out_w))
    columns = -(-out_w // strip) * strip
    source = x
    seen = ((out_h - 1) * stride[0] + span_h, (columns - 1) * stride[1] + span_w)
    if any(padding) or filled > channels or columns > out_w:
        source = te.compute(
            (n, *seen, filled),
            lambda b, y, z, c: tirx.if_then_else(
                tirx.all(y >= top, y < top + height, z >= left, z < left + width, c < channels),
                x[b, y - top, z - left, c],
                tirx.const(0, x.dtype),
            ),
            name=Block.PADDED,
            tag="injective,pad",
        )
    kh, kw = te.reduce_axis((0, kernel_h), "kh"), te.reduce_axis((0, kernel_w), "kw")
    sum_dtype = accumulator_dtype(x.dtype)
    sums = te.compute(
        (n, out_h, columns, filled),
        lambda b, y, z, c: te.sum(
            source[b, y * stride[0] + kh * dilation[0], z * stride[1] + kw * dilation[1], c].astype(sum_dtype)
            * weight[kh, kw, c].astype(sum_dtype),
            axis=[kh, kw],
        ),
        name=Block.DEPTHWISE,
        tag="depthwise_conv2d",
    )
    return te.compute(
        (n, out_h, out_w, channels),
        lambda b, y, z, c: sums[b, y, z, c].astype(x.dtype),
        name="depthwise_conv2d_out",
        tag="injective",
    )
