# SPDX-License-Identifier: Apache-2.0
"""`relax.nn.log_softmax` as a tensor program for CPUs; TVM's takes the logarithm of the sum for each number."""

from __future__ import annotations

from tvm import relax, tirx, topi

from ...te.norm import log_softmax_rows


def legalize_log_softmax(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Return the call of a program of rows; of TVM's where the numbers of a row do not lie beside each other."""
    (x,), axis = call.args, int(call.attrs.axis)
    rank, shape = x.ty.ndim, x.ty.shape
    known = isinstance(shape, relax.ShapeExpr) and all(isinstance(d, tirx.IntImm) for d in shape.values)
    if known and rank > 1 and axis % rank == rank - 1:
        return bb.call_te(log_softmax_rows, x, primfunc_name_hint="log_softmax")
    return bb.call_te(topi.nn.log_softmax, x, axis=axis)
