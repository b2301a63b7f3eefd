# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC with a packed weight: the 1x1 convolutions around an involution are matrix products."""

from __future__ import annotations

import numpy as np
from tvm import te, tirx

from .accumulate import accumulator_dtype


def pack_weight(weight: np.ndarray, lanes: int) -> np.ndarray:
    """Pack a convolution's weight so that `lanes` output channels lie side by side.

    Args:
        weight: (O, I, KH, KW).
        lanes: width of a pack; O is padded with zeros to a multiple of it.

    Returns:
        (ceil(O / lanes), KH, KW, I, lanes), contiguous.
    """
    o, i, kh, kw = weight.shape
    packs = -(-o // lanes)
    padded = np.zeros((packs * lanes, i, kh, kw), weight.dtype)
    padded[:o] = weight
    return np.ascontiguousarray(padded.reshape(packs, lanes, i, kh, kw).transpose(0, 3, 4, 2, 1))


def conv2d_packed(
    x: te.Tensor,
    weight: te.Tensor,
    out_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> te.Tensor:
    """Convolve; sums are kept in float32 for the half types.

    Args:
        x: (N, H, W, I).
        weight: (packs, KH, KW, I, lanes) from `pack_weight`, with packs * lanes >= out_channels.
        padding: zeros added at (top, left, bottom, right).

    Returns:
        (N, OH, OW, out_channels), of the dtype of x. Blocks: `pad_temp` where there is padding, `conv2d`
        (the sums, over all packed channels), `conv2d_out` (the wanted channels, in the dtype of x).
    """
    n, h, w, in_channels = x.shape
    packs, kernel_h, kernel_w, _, lanes = (int(d) for d in weight.shape)
    top, left, bottom, right = padding
    out_h = (h + top + bottom - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (w + left + right - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    source = x
    if any(padding):
        source = te.compute(
            (n, h + top + bottom, w + left + right, in_channels),
            lambda b, y, z, c: tirx.if_then_else(
                tirx.all(y >= top, y < top + h, z >= left, z < left + w),
                x[b, y - top, z - left, c],
                tirx.const(0, x.dtype),
            ),
            name="pad_temp",
            tag="injective,pad",
        )
    kh = te.reduce_axis((0, kernel_h), "kh")
    kw = te.reduce_axis((0, kernel_w), "kw")
    ic = te.reduce_axis((0, in_channels), "ic")
    sum_dtype = accumulator_dtype(x.dtype)
    sums = te.compute(
        (n, out_h, out_w, packs * lanes),
        lambda b, y, z, o: te.sum(
            source[b, y * stride[0] + kh * dilation[0], z * stride[1] + kw * dilation[1], ic].astype(sum_dtype)
            * weight[o // lanes, kh, kw, ic, o % lanes].astype(sum_dtype),
            axis=[kh, kw, ic],
        ),
        name="conv2d",
        tag="conv2d_packed",
    )
    return te.compute(
        (n, out_h, out_w, out_channels),
        lambda b, y, z, o: sums[b, y, z, o].astype(x.dtype),
        name="conv2d_out",
        tag="injective",
    )


def matmul_packed(x: te.Tensor, weight: te.Tensor, out_channels: int) -> te.Tensor:
    """Multiply rows x (M, I) by a packed weight (packs, 1, 1, I, lanes); returns (M, out_channels).

    Blocks: `conv2d` and `conv2d_out`, as in `conv2d_packed`, so one schedule serves both.
    """
    rows, in_features = x.shape
    packs, _, _, _, lanes = (int(d) for d in weight.shape)
    ic = te.reduce_axis((0, in_features), "ic")
    sum_dtype = accumulator_dtype(x.dtype)
    sums = te.compute(
        (rows, packs * lanes),
        lambda m, o: te.sum(
            x[m, ic].astype(sum_dtype) * weight[o // lanes, 0, 0, ic, o % lanes].astype(sum_dtype), axis=ic
        ),
        name="conv2d",
        tag="conv2d_packed",
    )
    return te.compute((rows, out_channels), lambda m, o: sums[m, o].astype(x.dtype), name="conv2d_out", tag="injective")
