# SPDX-License-Identifier: Apache-2.0
"""1x1 convolution by one step of Strassen's algorithm: seven products of half the size in each direction for eight.

V. Strassen, "Gaussian elimination is not optimal", Numerische Mathematik 13 (1969). The blocks of the matrices are even
and odd rows of pixels (or pictures), the two halves of the input channels, and even and odd packs of output channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import check_array, check_rank, check_shape, one_each, shape_text
from .convolution import pack_weight
from .select import select

# the left factors of the seven products, from blocks of x: [even or odd pixels][half of the input channels]
_LEFT = np.array(
    [
        [[1, 0], [0, 1]],
        [[0, 0], [1, 1]],
        [[1, 0], [0, 0]],
        [[0, 0], [0, 1]],
        [[1, 1], [0, 0]],
        [[-1, 0], [1, 0]],
        [[0, 1], [0, -1]],
    ]
)
# the right factors, from blocks of the weight: [half of the input channels][even or odd packs]
_RIGHT = np.array(
    [
        [[1, 0], [0, 1]],
        [[1, 0], [0, 0]],
        [[0, 1], [0, -1]],
        [[-1, 0], [1, 0]],
        [[0, 0], [0, 1]],
        [[1, 1], [0, 0]],
        [[0, 0], [1, 1]],
    ]
)
# the products that add up to a block of the result: [even or odd pixels][even or odd packs]
_RESULT = np.array(
    [
        [[1, 0, 0, 1, -1, 0, 1], [0, 0, 1, 0, 1, 0, 0]],
        [[0, 1, 0, 1, 0, 0, 0], [1, -1, 1, 0, 0, 1, 0]],
    ]
)
PRODUCTS = len(_LEFT)


@checked
def pack_strassen_weight(weight: np.ndarray, lanes: Size) -> np.ndarray:
    """Form the seven right factors of a 1x1 convolution's weight and pack them for `conv2d_strassen`.

    Args:
        weight: (O, I, 1, 1); O is a multiple of 2 * `lanes` and I is even.

    Returns:
        (O / (2 * lanes), 7, 1, I / 2, lanes), of the dtype of `weight`.
    """
    check_array("weight", weight, 4)
    out_channels, in_channels, *window = weight.shape
    if out_channels % (2 * lanes) or in_channels % 2 or window != [1, 1]:
        raise UserError(
            f"weight must be (O, I, 1, 1), O a multiple of 2 * lanes = {2 * lanes} and I even, got {list(weight.shape)}"
        )
    packs = weight.reshape(out_channels // (2 * lanes), 2, lanes, 2, in_channels // 2)
    factors = np.einsum("kij,pjlic->kplc", _RIGHT, packs.astype(np.float64)).astype(weight.dtype)
    columns = factors.reshape(PRODUCTS, out_channels // 2, in_channels // 2)
    return np.concatenate([pack_weight(factor[:, :, None, None], lanes) for factor in columns], axis=1)


def paired_axis(batch: int, out_height: int) -> int | None:
    """Return the axis whose even and odd indices are the blocks of pixels: rows (1), else pictures (0), else None."""
    return 1 if out_height % 2 == 0 else 0 if batch % 2 == 0 else None


@checked
def conv2d_strassen(x: te.Tensor, weight: te.Tensor, stride: tuple[int, int] = (1, 1)) -> te.Tensor:
    """Convolve by 1x1.

    Args:
        x: (N, H, W, I), float32 or float64; I is even, and so is N or the number of output rows.
        weight: (packs, 7, 1, I / 2, lanes), from `pack_strassen_weight`.

    Returns:
        (N, OH, OW, 2 * packs * lanes), of the dtype of x. Blocks: `strassen_input` (the left factors), `strassen` (the
        products), `conv2d_out`.
    """
    check_rank("x", x, 4)
    check_rank("weight", weight, 5)
    one_each("stride", stride, 2, 1)
    batch, height, width, in_channels = (int(d) for d in x.shape)
    packs, _, _, half, lanes = (int(d) for d in weight.shape)
    out_h, out_w = (height - 1) // stride[0] + 1, (width - 1) // stride[1] + 1
    axis = paired_axis(batch, out_h)
    if axis is None or in_channels != 2 * half:
        raise UserError(
            f"x must have {2 * half} channels and an even number of pictures or of output rows, got {shape_text(x)}"
        )
    check_shape("weight", weight, (packs, PRODUCTS, 1, half, lanes))
    pairs = (batch, out_h // 2) if axis == 1 else (batch // 2, out_h)

    def pixels(b, y, z, block):
        b, y = (b, 2 * y + block // 2) if axis == 1 else (2 * b + block // 2, y)
        return b, y * stride[0], z * stride[1]

    factors = te.compute(
        (*pairs, PRODUCTS, out_w, half),
        lambda b, y, k, z, c: _chosen(
            _LEFT.reshape(PRODUCTS, 4), [k], lambda block: x[(*pixels(b, y, z, block), block % 2 * half + c)]
        ),
        name=Block.STRASSEN_INPUT,
    )
    c = te.reduce_axis((0, half), "c")
    products = te.compute(
        (*pairs, PRODUCTS, out_w, packs * lanes),
        lambda b, y, k, z, o: te.sum(factors[b, y, k, z, c] * weight[o // lanes, k, 0, c, o % lanes], axis=c),
        name=Block.STRASSEN,
    )

    def result(b, y, z, o):
        blocks = [tirx.indexmod((b, y)[axis], 2), tirx.indexmod(tirx.indexdiv(o, lanes), 2)]
        b, y = (b, tirx.indexdiv(y, 2)) if axis == 1 else (tirx.indexdiv(b, 2), y)
        column = tirx.indexdiv(o, 2 * lanes) * lanes + tirx.indexmod(o, lanes)
        return _chosen(_RESULT, blocks, lambda k: products[b, y, k, z, column])

    return te.compute((batch, out_h, out_w, 2 * packs * lanes), result, name=Block.CONV2D_OUT, tag="injective")


def _chosen(factors: np.ndarray, indices: Sequence[tirx.PrimExpr], value):
    """Return the sum of `value(i)` weighted by `factors[*indices]`; schedules unroll the indices to constants."""
    if not indices:
        return _weighted(factors, value)
    first, *rest = indices
    return select(first, len(factors), lambda number: _chosen(factors[number], rest, value))


def _weighted(factors: np.ndarray, value):
    total = None
    for index, factor in sorted(enumerate(factors), key=lambda item: -item[1]):
        if factor:
            term = value(index)
            total = term if total is None else total + term if factor > 0 else total - term
    return total
