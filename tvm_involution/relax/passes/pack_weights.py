# SPDX-License-Identifier: Apache-2.0
"""Lower NHWC convolutions and linear layers with constant weights to packed matrix products.

The weight is packed here, once, at compile time, in the order in which the schedule walks it; what has no constant
weight, or groups, keeps TVM's own lowering.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ...schedules.cpu.dot_bf16 import has_dot_bf16
from ...target import vector_bytes
from ...te.convolution import conv2d_packed, matmul_packed, pack_weight


def pack_width(target: tvm.target.Target, out_channels: int) -> int:
    """Choose how many output channels lie side by side: two vectors of float32 where they fill, else one.

    A GPU reads a pack as one line of a tile, so it gets the same.
    """
    lanes = vector_bytes(target) // 4 if target.kind.name == "llvm" else 16
    return 2 * lanes if out_channels % (2 * lanes) == 0 else lanes


def packed_weight(target: tvm.target.Target, weight: np.ndarray, dtype: str) -> GenericConst:
    """Return the weight (O, I, KH, KW) as a constant in the order in which schedules for `target` walk it."""
    pairs = dtype == "bfloat16" and has_dot_bf16(target)
    return relax.const(pack_weight(weight, pack_width(target, weight.shape[0]), pairs))


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """Legalize `relax.nn.conv2d` (NHWC/OIHW) and `relax.matmul` by a constant matrix for `target`."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators as calls of tensor programs."""
        mutator = _Packer(mod, self.target)
        for name, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mutator.builder_.update_func(name, mutator.visit_expr(func))
        return mutator.builder_.get()


@relax.expr_functor.mutator
class _Packer(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: tvm.target.Target):
        super().__init__(mod)
        self.target = target

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", None)
        if name == "relax.nn.conv2d":
            return self._conv2d(call)
        if name == "relax.matmul":
            return self._matmul(call)
        return call

    def _conv2d(self, call: relax.Call) -> relax.Expr:
        weight, attrs = call.args[1], call.attrs
        layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
        if not isinstance(weight, GenericConst) or layouts != ("NHWC", "OIHW", "NHWC") or attrs.groups != 1:
            return call
        out_channels = int(weight.ty.shape[0])
        return self.builder_.call_te(
            conv2d_packed,
            call.args[0],
            packed_weight(self.target, weight.value.numpy(), str(call.ty.dtype)),
            out_channels=out_channels,
            stride=tuple(int(s) for s in attrs.strides),
            padding=tuple(int(p) for p in attrs.padding),
            dilation=tuple(int(d) for d in attrs.dilation),
            primfunc_name_hint="conv2d",
        )

    def _matmul(self, call: relax.Call) -> relax.Expr:
        x, weight = call.args
        if not isinstance(weight, GenericConst) or x.ty.ndim != 2 or weight.ty.ndim != 2:
            return call
        matrix = weight.value.numpy().T  # (O, I), as a convolution's weight
        return self.builder_.call_te(
            matmul_packed,
            x,
            packed_weight(self.target, matrix[:, :, None, None], str(call.ty.dtype)),
            out_channels=int(matrix.shape[0]),
            primfunc_name_hint="linear",
        )
