# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC as one matrix product, filled up to whole tiles: for GPUs without tensor cores for the dtype."""

from __future__ import annotations

import numpy as np
from tvm import te

from ..arguments import Size, checked
from .accumulate import accumulator_dtype
from .blocks import Block
from .checks import check_array, check_dtype, check_out_channels, check_rank, check_shape
from .im2col import Windows, padded_pixels

CHUNK = 8
"""elements of a window that lie side by side"""


@checked
def pack_weight_gemm(weight: np.ndarray, lanes: Size) -> np.ndarray:
    """Pack a convolution's weight (O, I, *taps) for `conv2d_gemm`.

    Args:
        lanes: O is filled up to a multiple of it, taps * I to one of 8, with zeros.

    Returns:
        (chunks, 8, filled up O), contiguous.
    """
    check_array("weight", weight, 4, 5)
    out_channels = weight.shape[0]
    rows = np.moveaxis(weight, 1, -1).reshape(out_channels, -1)
    filled, chunks = -(-out_channels // lanes) * lanes, -(-rows.shape[1] // CHUNK)
    padded = np.zeros((filled, chunks * CHUNK), weight.dtype)
    padded[:out_channels, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded.T.reshape(chunks, CHUNK, filled))


@checked
def conv2d_gemm(windows: Windows, weight: te.Tensor, out_channels: int, dtype: str) -> te.Tensor:
    """Multiply windows by a weight from `pack_weight_gemm`; sums are kept in float32 for the half types.

    Returns:
        (*windows.shape, out_channels) in `dtype`. Blocks: `im2col` (chunks, pixels, 8), `conv2d` (pixels x channels,
        both filled up), `conv2d_out`.
    """
    check_rank("weight", weight, 3)
    check_dtype("dtype", dtype)
    chunks, channels = -(-windows.depth // CHUNK), int(weight.shape[2])
    check_shape("weight", weight, (chunks, CHUNK, channels))
    check_out_channels(out_channels, channels)
    filled, sum_dtype = padded_pixels(windows.pixels), accumulator_dtype(dtype)
    vector = min(CHUNK, 16 // np.dtype(dtype if dtype == "float32" else "float16").itemsize)
    columns = te.compute(
        (chunks, filled, CHUNK),
        lambda chunk, m, k: windows.element(m, chunk * CHUNK + k // vector * vector, k % vector, vector),
        name=Block.IM2COL,
        tag="injective",
    )
    chunk, k = te.reduce_axis((0, chunks), "chunk"), te.reduce_axis((0, CHUNK), "k")
    sums = te.compute(
        (filled, channels),
        lambda m, o: te.sum(
            columns[chunk, m, k].astype(sum_dtype) * weight[chunk, k, o].astype(sum_dtype),
            axis=[chunk, k],
        ),
        name=Block.CONV2D,
        tag="conv2d_gemm",
    )
    return windows.output(sums, out_channels, dtype)
