# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC with a packed weight: the 1x1 convolutions around an involution are matrix products."""

from __future__ import annotations

import math

import numpy as np
from tvm import te, tirx

from ..arguments import checked
from .accumulate import accumulator_dtype


@checked
def pack_weight(weight: np.ndarray, lanes: int, pairs: bool = False) -> np.ndarray:
    """Pack a convolution's weight so that `lanes` output channels lie side by side.

    Args:
        weight: (O, I, KH, KW).
        lanes: width of a pack; O is padded with zeros to a multiple of it.
        pairs: let two input channels lie side by side inside that, for dot products of half types.

    Returns:
        (ceil(O / lanes), KH, KW, I, lanes), with pairs (ceil(O / lanes), KH, KW, ceil(I / 2), lanes, 2), contiguous.
    """
    o, i, kh, kw = weight.shape
    packs = -(-o // lanes)
    inputs = -(-i // 2) * 2 if pairs else i
    padded = np.zeros((packs * lanes, inputs, kh, kw), weight.dtype)
    padded[:o, :i] = weight
    if pairs:
        return np.ascontiguousarray(padded.reshape(packs, lanes, inputs // 2, 2, kh, kw).transpose(0, 4, 5, 2, 1, 3))
    return np.ascontiguousarray(padded.reshape(packs, lanes, i, kh, kw).transpose(0, 3, 4, 2, 1))


@checked
def conv2d_packed(
    x: te.Tensor,
    weight: te.Tensor,
    out_channels: int,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    out_dtype: str | None = None,
) -> te.Tensor:
    """Convolve; sums are kept in float32 for the half types.

    Args:
        x: (N, H, W, I).
        weight: from `pack_weight`, of at least `out_channels`.
        padding: zeros added at (top, left, bottom, right).
        out_dtype: that of x by default.

    Returns:
        (N, OH, OW, out_channels). Blocks: `pad_temp` where there is padding (of pixels, or
        of one channel to make them even), `conv2d`
        (the sums, over all packed channels), `conv2d_out` (the wanted channels, in `out_dtype`).
    """
    n, h, w, in_channels = x.shape
    packs, kernel_h, kernel_w, _, lanes, *_ = (int(d) for d in weight.shape)
    top, left, bottom, right = padding
    out_h = (h + top + bottom - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (w + left + right - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    source = x
    channels = _channel_axes(weight)
    padded_channels = math.prod(int(axis.dom.extent) for axis in channels)
    if any(padding) or padded_channels > int(in_channels):
        source = te.compute(
            (n, h + top + bottom, w + left + right, padded_channels),
            lambda b, y, z, c: tirx.if_then_else(
                tirx.all(y >= top, y < top + h, z >= left, z < left + w, c < in_channels),
                x[b, y - top, z - left, c],
                tirx.const(0, x.dtype),
            ),
            name="pad_temp",
            tag="injective,pad",
        )
    kh = te.reduce_axis((0, kernel_h), "kh")
    kw = te.reduce_axis((0, kernel_w), "kw")
    sum_dtype = accumulator_dtype(x.dtype)

    def product(b, y, z, o):
        y, z, channel = y * stride[0] + kh * dilation[0], z * stride[1] + kw * dilation[1], _channel(channels)
        weight_value = weight[(o // lanes, kh, kw, channels[0], o % lanes, *channels[1:])]
        return source[b, y, z, channel].astype(sum_dtype) * weight_value.astype(sum_dtype)

    sums = te.compute(
        (n, out_h, out_w, packs * lanes),
        lambda b, y, z, o: te.sum(product(b, y, z, o), axis=[kh, kw, *channels]),
        name="conv2d",
        tag="conv2d_packed",
    )
    return te.compute(
        (n, out_h, out_w, out_channels),
        lambda b, y, z, o: sums[b, y, z, o].astype(out_dtype or x.dtype),
        name="conv2d_out",
        tag="injective",
    )


@checked
def matmul_packed(x: te.Tensor, weight: te.Tensor, out_channels: int) -> te.Tensor:
    """Multiply rows x (M, I) by a weight from `pack_weight`; returns (M, out_channels).

    Blocks: `conv2d` and `conv2d_out`, as in `conv2d_packed`, so one schedule serves both.
    """
    rows, in_features = (int(d) for d in x.shape)
    packs, _, _, _, lanes, *_ = (int(d) for d in weight.shape)
    channels = _channel_axes(weight)
    padded_features = math.prod(int(axis.dom.extent) for axis in channels)
    source = x
    if padded_features > in_features:
        source = te.compute(
            (rows, padded_features),
            lambda m, c: tirx.if_then_else(c < in_features, x[m, c], tirx.const(0, x.dtype)),
            name="pad_temp",
            tag="injective,pad",
        )
    sum_dtype = accumulator_dtype(x.dtype)

    def product(m, o):
        weight_value = weight[(o // lanes, 0, 0, channels[0], o % lanes, *channels[1:])]
        return source[m, _channel(channels)].astype(sum_dtype) * weight_value.astype(sum_dtype)

    sums = te.compute(
        (rows, packs * lanes),
        lambda m, o: te.sum(product(m, o), axis=channels),
        name="conv2d",
        tag="conv2d_packed",
    )
    return te.compute((rows, out_channels), lambda m, o: sums[m, o].astype(x.dtype), name="conv2d_out", tag="injective")


def _channel_axes(weight: te.Tensor) -> list[tirx.IterVar]:
    """Return the axes over the input channels: one, or with pairs two."""
    axes = [te.reduce_axis((0, int(weight.shape[3])), "ic")]
    if len(weight.shape) == 6:
        axes.append(te.reduce_axis((0, int(weight.shape[5])), "pair"))
    return axes


def _channel(axes: list[tirx.IterVar]):
    return axes[0] if len(axes) == 1 else axes[0] * int(axes[1].dom.extent) + axes[1]
