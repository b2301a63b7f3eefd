# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC as the matrix product that NVIDIA's tensor cores do, operands in the order of their registers.

The instruction `mma.sync` multiplies a tile of W (16 rows x k) by one of X (k x 8 columns); its 32 lanes each hold a
few elements of either (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Here output channels are the rows and pixels the
columns. The order of the channels and that of the sum are free, so the weight is packed such that everything a lane
needs lies side by side: 16 bytes of a pixel's channels are its fragment of X, and the sums that it ends with are
neighbouring channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import te

from ..arguments import Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import check_array, check_dtype, check_out_channels, check_rank, check_shape
from .im2col import Windows, padded_pixels

LANES = 32
ROWS, COLUMNS = 16, 8
"""of the instruction's result: channels and pixels"""


@checked
@dataclass(frozen=True)
class MmaFragments:
    """Which elements of the operands a lane holds."""

    dtype: str
    """of the operands; float32 stands for tf32"""
    depth: int
    """elements that one instruction sums: 16, or 8 for tf32 and before sm_80"""
    lane_bytes: int = 16
    """of a pixel's channels that a lane holds; 8 for sums too short for 16"""

    def __post_init__(self) -> None:
        if self.dtype not in ("float16", "bfloat16", "float32") or self.depth not in (8, 16):
            raise UserError(
                f"MmaFragments: dtype must be float16, bfloat16 or float32 and depth 8 or 16, got {self.dtype!r} and "
                f"{self.depth}"
            )
        if self.lane_bytes not in (8, 16) or not self.steps:
            raise UserError(f"MmaFragments: lane_bytes must be 16, or 8 for short sums, got {self.lane_bytes}")

    @property
    def values(self) -> int:
        """Neighbouring channels of a pixel that a lane holds."""
        return self.lane_bytes // self._bytes

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


@checked
def pack_weight_mma(weight: np.ndarray, fragments: MmaFragments, tiles: Size) -> np.ndarray:
    """Pack a convolution's weight for `conv2d_mma`.

    Args:
        weight: (O, I, *taps).
        tiles: of 16 output channels in a pack; a lane ends with 2 * tiles neighbouring channels.

    Returns:
        (packs, chunks, tiles, steps, 32 lanes, weights a lane), contiguous; O and taps * I filled up with zeros.
    """
    check_array("weight", weight, 4, 5)
    out_channels = weight.shape[0]
    rows = np.moveaxis(weight, 1, -1).reshape(out_channels, -1)
    packs, chunks = -(-out_channels // (ROWS * tiles)), -(-rows.shape[1] // fragments.chunk)
    padded = np.zeros((packs * ROWS * tiles, chunks * fragments.chunk), weight.dtype)
    padded[:out_channels, : rows.shape[1]] = rows
    f = fragments
    axes = padded.reshape(packs, 8, tiles, 2, chunks, 4, f.steps, f.registers, f.pair)
    # pack, row, tile, half, chunk, column, step, register, element
    ordered = axes.transpose(0, 4, 2, 6, 1, 5, 7, 3, 8)
    return np.ascontiguousarray(ordered.reshape(packs, chunks, tiles, f.steps, LANES, f.weights))


@checked
def conv2d_mma(
    windows: Windows, weight: te.Tensor, out_channels: int, fragments: MmaFragments, dtype: str
) -> te.Tensor:
    """Multiply windows by a weight from `pack_weight_mma`, with sums in float32.

    Returns:
        (*windows.shape, out_channels) in `dtype`. Blocks: `im2col` (what the lanes hold of the windows), `mma` (the
        sums, as the lanes hold them), `conv2d` (pixels x channels, both filled up), `conv2d_out`.
    """
    f = fragments
    check_rank("weight", weight, 6)
    check_dtype("dtype", dtype)
    packs, _, tiles, *_ = (int(d) for d in weight.shape)
    chunks = -(-windows.depth // f.chunk)
    check_shape("weight", weight, (packs, chunks, tiles, f.steps, LANES, f.weights))
    check_out_channels(out_channels, packs * ROWS * tiles)
    filled, pack = padded_pixels(windows.pixels), ROWS * tiles
    columns = te.compute(
        (chunks, filled // COLUMNS, LANES, f.values),
        lambda chunk, block, lane, v: windows.element(
            block * COLUMNS + lane // 4, chunk * f.chunk + lane % 4 * f.values, v, f.values
        ),
        name=Block.IM2COL,
        tag="injective",
    )
    chunk, step = te.reduce_axis((0, chunks), "chunk"), te.reduce_axis((0, f.steps), "step")
    quad, e = te.reduce_axis((0, 4), "quad"), te.reduce_axis((0, f.registers * f.pair), "element")

    def product(lane, p, b, t, r):
        row = weight[p, chunk, t, step, lane // 4 * 4 + quad, (e // f.pair * 2 + r // 2) * f.pair + e % f.pair]
        column = columns[chunk, b, (lane % 4 * 2 + r % 2) * 4 + quad, step * f.registers * f.pair + e]
        return te.sum(row.astype("float32") * column.astype("float32"), axis=[chunk, step, quad, e])

    mma = te.compute((LANES, packs, filled // COLUMNS, tiles, 4), product, name=Block.MMA, tag="conv2d_mma")

    def where(m, o):
        lane = o % pack // (2 * tiles) * 4 + m % COLUMNS // 2
        return mma[lane, o // pack, m // COLUMNS, o % (2 * tiles) // 2, o % 2 * 2 + m % 2]

    sums = te.compute((filled, packs * pack), where, name=Block.CONV2D, tag="injective")
    return windows.output(sums, out_channels, dtype)
