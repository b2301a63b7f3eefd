# SPDX-License-Identifier: Apache-2.0
"""What a block of products on tensor cores multiplies, read from the block."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir

from ...te.mma_convolution import MmaFragments


@dataclass(frozen=True)
class MmaProduct:
    """A weight (packs, chunks, tiles, ...) by what the lanes hold of the windows."""

    packs: int
    """of output channels"""
    chunks: int
    """of the sum"""
    tiles: int
    """of 16 output channels in a pack"""
    fragments: MmaFragments


def read_mma(block: s_tir.SBlock) -> MmaProduct:
    """Return what a block of `te.conv2d_mma` or `te.spanned_involution2d_mma` multiplies."""
    weight, windows = (read.source for read in block.reads)
    packs, chunks, tiles, _, _, held = (int(d) for d in weight.shape)
    dtype = str(weight.dtype)
    lane_bytes = int(windows.shape[-1]) * tvm.DataType(dtype).bits // 8
    # a lane holds two rows of the instruction's sixteen, a quarter of their depth
    return MmaProduct(packs, chunks, tiles, MmaFragments(dtype, 2 * held, lane_bytes))
