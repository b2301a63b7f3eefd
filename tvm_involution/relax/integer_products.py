# SPDX-License-Identifier: Apache-2.0
"""A convolution or linear layer of bytes: products in integers, and what their sums stand for in float32."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm_ffi
from tvm import relax

from .dtypes import with_attribute
from .rewrite import is_call

CONV, LINEAR = "relax.nn.conv2d", "relax.matmul"
MIDDLE = np.int32(128)
"""what a byte with sign has less than one without"""


def integer_products(
    layer: relax.Call,
    x: relax.Expr,
    x_scale: float,
    zero: int,
    weight: np.ndarray,
    scale: np.ndarray,
    emit: Callable[[relax.Expr], relax.Var],
) -> relax.Expr:
    """Return what `layer` computes, an NCHW convolution without groups or a matrix product, of `x_scale * (x - zero)`.

    Where zero is no byte 0, what that adds to the sums is subtracted from them: `zero * sum(weight)`, the same for all
    pixels, since padding is the byte that stands for zero, too.

    Args:
        x: bytes, with sign or without.
        weight: (O, I, KH, KW) or (O, I) in int8.
        scale: (O,), of each output channel.

    Returns:
        float32, of the shape of `layer`.
    """
    channels = (1, -1, 1, 1) if is_call(layer, CONV) else (1, -1)
    if is_call(layer, CONV):
        attrs = with_attribute(layer.attrs, "out_dtype", tvm_ffi.dtype("int32"))
        top, left, bottom, right = (int(p) for p in attrs.padding)
        if zero and any((top, left, bottom, right)):
            x = emit(relax.op.nn.pad(x, [0, 0, 0, 0, top, bottom, left, right], "constant", zero))
            attrs = with_attribute(attrs, "padding", [0, 0, 0, 0])
        sums = emit(relax.Call(layer.op, [x, relax.const(weight)], attrs))
    else:
        sums = emit(relax.op.matmul(x, relax.const(np.ascontiguousarray(weight.T)), "int32"))
    if zero:
        shift = -zero * weight.reshape(len(weight), -1).astype(np.int32).sum(1)
        sums = emit(relax.op.add(sums, relax.const(shift.reshape(channels).astype(np.int32))))
    by = (scale.astype(np.float64) * x_scale).reshape(channels).astype(np.float32)
    return relax.op.multiply(emit(relax.op.astype(sums, "float32")), relax.const(by))
