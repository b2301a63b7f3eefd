# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC as the matrix product that NVIDIA's tensor cores do, operands in the order of their registers.

The instruction `mma.sync` multiplies a tile of W (16 rows x k) by one of X (k x 8 columns); its 32 lanes each hold a few
elements of either (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Here output channels are the rows and pixels the columns.
The order of the channels and that of the sum are free, so the weight is packed such that everything a lane needs lies side by
side: 16 bytes of a pixel's channels are its fragment of X, and the sums that it ends with are neighbouring channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import te, tirx

LANES = 32
ROWS, COLUMNS = 16, 8
"""of the instruction's result: channels and pixels"""
_LANE_BYTES = 16


@dataclass(frozen=True)
class MmaFragments:
    """Which elements of the operands a lane holds."""

    dtype: str
    """of the operands; float32 stands for tf32"""
    depth: int
    """elements that one instruction sums: 16, or 8 for tf32 and before sm_80"""

    @property
    def values(self) -> int:
        """Neighbouring channels of a pixel that a lane holds."""
        return _LANE_BYTES // self._bytes

    @property
    def chunk(self) -> int:
        """Channels of a pixel that four lanes hold."""
        return 4 * self.values

    @property
    def pair(self) -> int:
        """Elements in a 32-bit register."""
        return 4 // self._bytes

    @property
    def registers(self) -> int:
        """Registers of a lane's fragment of X."""
        return self.depth // (4 * self.pair)

    @property
    def steps(self) -> int:
        """Instructions a chunk."""
        return self.values // (self.registers * self.pair)

    @property
    def weights(self) -> int:
        """Weights that a lane holds for one instruction."""
        return 2 * self.registers * self.pair

    @property
    def _bytes(self) -> int:
        return 4 if self.dtype == "float32" else 2


def pack_weight_mma(weight: np.ndarray, fragments: MmaFragments, tiles: int) -> np.ndarray:
    """Pack a convolution's weight for `conv2d_mma`.

    Args:
        weight: (O, I, KH, KW).
        tiles: of 16 output channels in a pack; a lane ends with 2 * tiles neighbouring channels.

    Returns:
        (packs, chunks, tiles, steps, 32 lanes, weights a lane), contiguous; O and KH * KW * I filled up with zeros.
    """
    out_channels = weight.shape[0]
    rows = weight.transpose(0, 2, 3, 1).reshape(out_channels, -1)
    packs, chunks = -(-out_channels // (ROWS * tiles)), -(-rows.shape[1] // fragments.chunk)
    padded = np.zeros((packs * ROWS * tiles, chunks * fragments.chunk), weight.dtype)
    padded[:out_channels, : rows.shape[1]] = rows
    f = fragments
    axes = padded.reshape(packs, 8, tiles, 2, chunks, 4, f.steps, f.registers, f.pair)
    # pack, row, tile, half, chunk, column, step, register, element
    ordered = axes.transpose(0, 4, 2, 6, 1, 5, 7, 3, 8)
    return np.ascontiguousarray(ordered.reshape(packs, chunks, tiles, f.steps, LANES, f.weights))


def conv2d_mma(
    x: te.Tensor,
    weight: te.Tensor,
    out_channels: int,
    fragments: MmaFragments,
    kernel_size: tuple[int, int] = (1, 1),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
) -> te.Tensor:
    """Convolve with sums in float32.

    Args:
        x: (N, H, W, I), static.
        weight: from `pack_weight_mma`.
        padding: zeros added at (top, left, bottom, right).

    Returns:
        (N, OH, OW, out_channels), of the dtype of x. Blocks: `im2col` (what the lanes hold of the windows), `mma` (the
        sums, as the lanes hold them), `conv2d` (pixels x channels, both filled up), `conv2d_out`.
    """
    n, h, w, in_channels = (int(d) for d in x.shape)
    top, left, bottom, right = padding
    out_h = (h + top + bottom - dilation[0] * (kernel_size[0] - 1) - 1) // stride[0] + 1
    out_w = (w + left + right - dilation[1] * (kernel_size[1] - 1) - 1) // stride[1] + 1
    depth = kernel_size[0] * kernel_size[1] * in_channels

    def element(pixel, k, v):
        """Element k + v of a pixel's window; the same kernel position for all v of a vector."""
        if kernel_size == (1, 1):
            tap, channel = 0, k + v
        elif aligned:
            tap, channel = k // in_channels, k % in_channels + v
        else:
            tap, channel = (k + v) // in_channels, (k + v) % in_channels
        row = pixel // out_w % out_h * stride[0] + tap // kernel_size[1] * dilation[0] - top
        column = pixel % out_w * stride[1] + tap % kernel_size[1] * dilation[1] - left
        inside = [pixel < n * out_h * out_w]
        if depth % fragments.chunk:
            inside.append((k if aligned else k + v) < depth)
        if any(padding):
            inside += [row >= 0, row < h, column >= 0, column < w]
        return tirx.all(*inside), x[pixel // (out_h * out_w), row, column, channel]

    aligned = in_channels % fragments.values == 0
    sums = _sums(n * out_h * out_w, element, weight, fragments)
    return te.compute(
        (n, out_h, out_w, out_channels),
        lambda b, y, z, o: sums[(b * out_h + y) * out_w + z, o].astype(x.dtype),
        name="conv2d_out",
        tag="injective",
    )


def matmul_mma(x: te.Tensor, weight: te.Tensor, out_channels: int, fragments: MmaFragments) -> te.Tensor:
    """Multiply rows x (M, I) by a weight from `pack_weight_mma`; returns (M, out_channels). Blocks as in `conv2d_mma`."""
    rows, in_features = (int(d) for d in x.shape)
    aligned = in_features % fragments.values == 0

    def element(row, k, v):
        inside = [row < rows]
        if in_features % fragments.chunk:
            inside.append((k if aligned else k + v) < in_features)
        return tirx.all(*inside), x[row, k + v]

    sums = _sums(rows, element, weight, fragments)
    return te.compute((rows, out_channels), lambda m, o: sums[m, o].astype(x.dtype), name="conv2d_out", tag="injective")


def padded_pixels(pixels: int) -> int:
    """Fill up pixels so that tiles of a power of two divide them: by less than 3 % where there are many."""
    granule = 8 if pixels <= 16 else 32 if pixels <= 1024 else 128
    return -(-pixels // granule) * granule


def _sums(pixels: int, element: Callable[..., Any], weight: te.Tensor, f: MmaFragments) -> te.Tensor:
    """Return (padded pixels, padded channels) in float32."""
    packs, chunks, tiles, *_ = (int(d) for d in weight.shape)
    filled = padded_pixels(pixels)

    def window(chunk, block, lane, v):
        inside, value = element(block * COLUMNS + lane // 4, chunk * f.chunk + lane % 4 * f.values, v)
        return tirx.if_then_else(inside, value, tirx.const(0, weight.dtype))

    columns = te.compute((chunks, filled // COLUMNS, LANES, f.values), window, name="im2col", tag="injective")
    chunk, step = te.reduce_axis((0, chunks), "chunk"), te.reduce_axis((0, f.steps), "step")
    quad, e = te.reduce_axis((0, 4), "quad"), te.reduce_axis((0, f.registers * f.pair), "element")
    mma = te.compute(
        (LANES, packs, filled // COLUMNS, tiles, 4),
        lambda lane, p, b, t, r: te.sum(
            weight[p, chunk, t, step, lane // 4 * 4 + quad, (e // f.pair * 2 + r // 2) * f.pair + e % f.pair].astype("float32")
            * columns[chunk, b, (lane % 4 * 2 + r % 2) * 4 + quad, step * f.registers * f.pair + e].astype("float32"),
            axis=[chunk, step, quad, e],
        ),
        name="mma",
        tag="conv2d_mma",
    )
    pack = ROWS * tiles
    return te.compute(
        (filled, packs * pack),
        lambda m, o: mma[
            o % pack // (2 * tiles) * 4 + m % COLUMNS // 2, o // pack, m // COLUMNS, o % (2 * tiles) // 2, o % 2 * 2 + m % 2
        ],
        name="conv2d",
        tag="injective",
    )
