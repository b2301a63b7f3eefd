# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions whose windows do not overlap: a 1x1 convolution, then each pixel's window laid out.

Every output pixel comes from one input pixel then, so the sum is that of a matrix product, which TVM's own lowering (a
convolution over an input filled up with zeros) computes with KH * KW times the operations.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant, to_float
from ..rewrite import rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="SplitTransposedConvolution")
class SplitTransposedConvolution:
    """Rewrite `relax.nn.conv2d_transpose` (NCHW, constant weight) whose strides are its kernel's size."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` without those transposed convolutions."""
        return rewrite_functions(mod, _Splitter(mod))


@relax.expr_functor.mutator
class _Splitter(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if getattr(call.op, "name", None) != "relax.nn.conv2d_transpose" or not _is_tiled(call):
            return call
        x, weight = call.args
        _, out_channels, kernel_h, kernel_w = (int(d) for d in weight.ty.shape)
        n, _, height, width = (int(d) for d in x.ty.shape)
        # (I, O, KH, KW) -> (KH * KW * O, I, 1, 1)
        rows = to_float(weight).transpose(2, 3, 1, 0).reshape(kernel_h * kernel_w * out_channels, -1, 1, 1)
        emit = self.builder_.emit
        windows = emit(relax.op.nn.conv2d(x, constant(rows, call.ty.dtype)))
        windows = emit(relax.op.permute_dims(windows, [0, 2, 3, 1]))
        windows = emit(relax.op.reshape(windows, (n, height, width, kernel_h, kernel_w, out_channels)))
        laid_out = emit(relax.op.permute_dims(windows, [0, 1, 3, 2, 4, 5]))
        laid_out = emit(relax.op.reshape(laid_out, (n, height * kernel_h, width * kernel_w, out_channels)))
        return relax.op.permute_dims(laid_out, [0, 3, 1, 2])


def _is_tiled(call: relax.Call) -> bool:
    """Return whether each output pixel comes from one input pixel, by a weight known at compile time."""
    weight, attrs = call.args[1], call.attrs
    return (
        isinstance(weight, GenericConst)
        and (attrs.data_layout, attrs.kernel_layout) == ("NCHW", "IOHW")
        and [int(s) for s in attrs.strides] == [int(d) for d in weight.value.shape[2:]]
        and not any(int(p) for p in [*attrs.padding, *attrs.output_padding])
        and all(int(d) == 1 for d in attrs.dilation)
        and attrs.groups == 1
    )
