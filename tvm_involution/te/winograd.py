# SPDX-License-Identifier: Apache-2.0
"""3x3 convolution by Winograd's minimal filtering: F(m x m, 3 x 3) of arXiv 1509.09308.

A tile of m x m outputs takes (m + 2)^2 products a channel in place of 9 m^2: 36 for 144 with m = 4. The matrices are
those of Toom and Cook for the points 0, 1, -1, 2, -2, ... and infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import check_array, check_out_channels, check_rank, check_shape, check_window_fits, one_each
from .convolution import pack_weight
from .select import select

KERNEL = 3
_POINTS = (0.0, 1.0, -1.0, 2.0, -2.0)


def winograd_matrices(m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return A^T (m, n), G (n, 3) and B^T (n, n) in float64, with n = m + 2: Y = A^T ((G g G^T) * (B^T d B)) A."""
    n = m + KERNEL - 1
    points = np.array(_POINTS[: n - 1])
    output, weight, data = np.zeros((m, n)), np.zeros((n, KERNEL)), np.zeros((n, n))
    for j, point in enumerate(points):
        others = np.delete(points, j)
        output[:, j] = point ** np.arange(m)
        weight[j] = point ** np.arange(KERNEL) / np.prod(point - others)
        data[j, : n - 1] = np.poly(others)[::-1]
    output[-1, -1] = weight[-1, -1] = 1.0
    data[-1] = np.poly(points)[::-1]
    return output, weight, data


@checked
def pack_winograd_weight(weight: np.ndarray, m: Size, lanes: Size) -> np.ndarray:
    """Transform a convolution's weight (O, I, 3, 3), in float64, and pack it for `conv2d_winograd`.

    Returns:
        (ceil(O / lanes), n, n, I, lanes) with n = m + 2, float32: half types would lose a digit more than they have.
    """
    check_array("weight", weight, 4)
    if weight.shape[2:] != (KERNEL, KERNEL):
        raise UserError(f"weight must be (O, I, {KERNEL}, {KERNEL}), got {list(weight.shape)}")
    _check_tile(m)
    _, g, _ = winograd_matrices(m)
    transformed = np.einsum("ur,oirs,vs->oiuv", g, weight.astype(np.float64), g)
    return pack_weight(transformed.astype(np.float32), lanes)


@checked
def conv2d_winograd(
    x: te.Tensor,
    weight: te.Tensor,
    out_channels: int,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    strip: Size = 1,
) -> te.Tensor:
    """Convolve by 3x3 with stride 1; everything but input and output is in float32.

    Args:
        x: (N, H, W, I), float32 or a half type.
        weight: (packs, m + 2, m + 2, I, lanes), float32, from `pack_winograd_weight`; packs * lanes >= out_channels.
        padding: zeros added at (top, left, bottom, right).
        strip: the tiles of a row are filled up to a multiple of this, for a schedule's sake.

    Returns:
        (N, OH, OW, out_channels), of the dtype of x. Blocks: `winograd_rows`, `winograd_input` (the transformed input),
        `winograd` (the sums, over all packed channels), `winograd_output_rows`, `winograd_output` (whole tiles),
        `conv2d_out` (the wanted pixels and channels, in the dtype of x).
    """
    check_rank("x", x, 4)
    check_rank("weight", weight, 5)
    one_each("padding", padding, 4, 0)
    batch, height, width, in_channels = (int(d) for d in x.shape)
    packs, n, _, _, lanes = (int(d) for d in weight.shape)
    m = n - KERNEL + 1
    _check_tile(m)
    check_shape("weight", weight, (packs, n, n, in_channels, lanes))
    check_out_channels(out_channels, packs * lanes)
    top, left, bottom, right = padding
    out_h, out_w = height + top + bottom - KERNEL + 1, width + left + right - KERNEL + 1
    check_window_fits(x, (KERNEL, KERNEL), (out_h, out_w))
    tiles_h, tiles_w = (out_h + m - 1) // m, (out_w + m * strip - 1) // (m * strip) * strip
    output, _, data = winograd_matrices(m)

    def pixel(b, y, z, c):
        y, z = y - top, z - left
        inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
        return tirx.if_then_else(inside, x[b, y, z, c].astype("float32"), tirx.const(0, "float32"))

    # d B: along a row first, then B^T (d B) along a column
    rows = te.compute(
        (batch, tiles_h, tiles_w, n, n, in_channels),
        lambda b, ty, tz, r, v, c: _combine(data, v, lambda s: pixel(b, ty * m + r, tz * m + s, c)),
        name=Block.WINOGRAD_ROWS,
    )
    transformed = te.compute(
        (batch, tiles_h, tiles_w, n, n, in_channels),
        lambda b, ty, tz, u, v, c: _combine(data, u, lambda r: rows[b, ty, tz, r, v, c]),
        name=Block.WINOGRAD_INPUT,
    )
    c = te.reduce_axis((0, in_channels), "c")
    sums = te.compute(
        (batch, tiles_h, tiles_w, n, n, packs * lanes),
        lambda b, ty, tz, u, v, o: te.sum(
            transformed[b, ty, tz, u, v, c] * weight[o // lanes, u, v, c, o % lanes], axis=c
        ),
        name=Block.WINOGRAD,
    )
    output_rows = te.compute(
        (batch, tiles_h, tiles_w, n, m, packs * lanes),
        lambda b, ty, tz, u, j, o: _combine(output, j, lambda v: sums[b, ty, tz, u, v, o]),
        name=Block.WINOGRAD_OUTPUT_ROWS,
    )
    tiles = te.compute(
        (batch, tiles_h * m, tiles_w * m, packs * lanes),
        lambda b, y, z, o: _combine(output, y % m, lambda u: output_rows[b, y // m, z // m, u, z % m, o]),
        name=Block.WINOGRAD_OUTPUT,
    )
    return te.compute(
        (batch, out_h, out_w, out_channels),
        lambda b, y, z, o: tiles[b, y, z, o].astype(x.dtype),
        name=Block.CONV2D_OUT,
        tag="injective",
    )


def _check_tile(m: int) -> None:
    largest = len(_POINTS) + 2 - KERNEL
    if not 1 <= m <= largest:
        raise UserError(f"m, the pixels along a tile of winograd, must be from 1 to {largest}, got {m}")


def _combine(matrix: np.ndarray, row, value):
    """Return the sum of `value(column)` weighted by a row of `matrix`; schedules unroll `row`, so it is a constant."""
    return select(row, len(matrix), lambda number: _weighted(matrix[number], value))


def _weighted(factors: Sequence[float], value):
    total = None
    for column, factor in enumerate(factors):
        if factor == 0:
            continue
        term = value(column) if abs(factor) == 1 else value(column) * tirx.const(abs(float(factor)), "float32")
        signed = term if factor > 0 else -term
        total = signed if total is None else total + signed
    return total
