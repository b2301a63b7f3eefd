# SPDX-License-Identifier: Apache-2.0
"""Products of two computed matrices, or of as many as there are heads: the second is packed as weights are, then."""

from __future__ import annotations

from tvm import te, tirx

from .accumulate import accumulator_dtype
from .blocks import Block


def matmul_computed(a: te.Tensor, b: te.Tensor, transposed: bool, lanes: int, strip: int = 1) -> te.Tensor:
    """Multiply; sums are kept in float32 for the half types.

    Args:
        a: (*batch, M, K).
        b: (*batch, K, O), transposed (*batch, O, K), with the same batch.
        lanes: columns of the result that lie side by side in the packed b.
        strip: rows are filled up to a multiple of so many, which a schedule can take together.

    Returns:
        (*batch, M, O). Blocks: `packed`, `pad_temp` where rows are filled up, `conv2d` and `conv2d_out`, as in
        `conv2d_packed`, so one schedule serves both.
    """
    *batch, rows, depth = (int(d) for d in a.shape)
    columns = int(b.shape[-2 if transposed else -1])
    packs, filled = -(-columns // lanes), -(-rows // strip) * strip
    zero, sum_dtype = tirx.const(0, a.dtype), accumulator_dtype(a.dtype)

    def pack(*index):
        *lead, pack, _, _, k, lane = index
        o = pack * lanes + lane
        value = b(*lead, o, k) if transposed else b(*lead, k, o)
        return tirx.if_then_else(o < columns, value, zero) if columns % lanes else value

    packed = te.compute((*batch, packs, 1, 1, depth, lanes), pack, name="packed")
    source = a
    if filled > rows:
        source = te.compute(
            (*batch, filled, depth),
            lambda *index: tirx.if_then_else(index[-2] < rows, a(*index), zero),
            name=Block.PADDED,
            tag="injective,pad",
        )
    k = te.reduce_axis((0, depth), "ic")

    def product(*index):
        *lead, m, o = index
        weight = packed(*lead, o // lanes, 0, 0, k, o % lanes)
        return source(*lead, m, k).astype(sum_dtype) * weight.astype(sum_dtype)

    sums = te.compute(
        (*batch, filled, packs * lanes),
        lambda *index: te.sum(product(*index), k),
        name=Block.CONV2D,
        tag="conv2d_packed",
    )
    return te.compute(
        (*batch, rows, columns), lambda *index: sums(*index).astype(a.dtype), name=Block.CONV2D_OUT, tag="injective"
    )
