# SPDX-License-Identifier: Apache-2.0
"""Make one matrix product of two convolutions whose results are added: the third of a block and its shortcut's.

The sum over the channels of one goes on over those of the other, so that neither result goes to memory and back, and
there is one kernel less. On GPUs, whose products read windows of any input chunk by chunk.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

from ...te.im2col import Windows, conv2d_windows, joined_windows
from ..constants import to_float
from ..conv2d import is_dense_nhwc, is_static
from ..rewrite import update_functions
from ..uses import count_uses
from .pack_weights import product_of


@tvm.transform.module_pass(opt_level=0, name="JoinAddedConvolutions")
class JoinAddedConvolutions:
    """Rewrite `(conv2d(x, W) + b) + (conv2d(y, V) + c)` in NHWC with constant weights and biases for GPUs.

    Args:
        tf32: multiply float32 on tensor cores, which keep 10 bits of its mantissa.
    """

    def __init__(self, target: tvm.target.Target, tf32: bool = False):
        self.target = target
        self.tf32 = tf32

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those sums as calls of one tensor program and an addition."""
        return update_functions(mod, self._join) if self.target.kind.name == "cuda" else mod

    def _join(self, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
        weights, biases = (is_const(), is_const()), (is_const(), is_const())
        convolutions = [is_op("relax.nn.conv2d")(wildcard(), weight) for weight in weights]
        sides = [is_op("relax.add")(*pair) for pair in zip(convolutions, biases, strict=True)]
        total = is_op("relax.add")(*sides)
        uses = count_uses(func)

        def rewrite(expr, matches):
            calls, constants = ([matches[part] for part in parts] for parts in (convolutions, biases))
            if any(uses.get(matches[part], 2) != 1 for part in (*convolutions, *sides)):
                return expr
            if not all(_is_dense(call, bias) for call, bias in zip(calls, constants, strict=True)):
                return expr
            shape, dtype = [int(d) for d in expr.ty.shape.values], str(expr.ty.dtype)
            pixels = math.prod(shape[:-1])
            if pixels == 1 or any([int(d) for d in call.ty.shape.values] != shape for call in calls):
                return expr
            arrays = [call.args[1].value.numpy() for call in calls]
            lower = product_of(self.target, self.tf32, dtype, pixels, arrays)
            if lower is None:
                return expr
            windows = functools.partial(_windows, [_attributes(call) for call in calls])
            product = lower(builder, [call.args[0] for call in calls], windows, "conv2d")
            bias = np.add(*(to_float(constant) for constant in constants))
            return relax.op.add(product, relax.const(bias.astype("float32"), dtype))

        return rewrite_call(total, rewrite, func)


def _is_dense(call: relax.Call, bias: tvm.ir.GenericConst) -> bool:
    channels = int(call.args[1].ty.shape.values[0])
    return is_dense_nhwc(call) and is_static(call) and [int(d) for d in bias.ty.shape.values] == [1, 1, 1, channels]


def _attributes(call: relax.Call) -> dict[str, Any]:
    """Return what `conv2d_windows` takes beside the input."""
    window = {"kernel_size": tuple(int(d) for d in call.args[1].ty.shape.values[2:])}
    named = {"stride": call.attrs.strides, "padding": call.attrs.padding, "dilation": call.attrs.dilation}
    return window | {name: tuple(int(value) for value in values) for name, values in named.items()}


def _windows(attributes: list[dict[str, Any]], chunk: int, *inputs: Any) -> Windows:
    first, second = (conv2d_windows(x, **own) for x, own in zip(inputs, attributes, strict=True))
    return joined_windows(first, second, chunk)
