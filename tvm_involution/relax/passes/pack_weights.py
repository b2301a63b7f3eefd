# SPDX-License-Identifier: Apache-2.0
"""Lower NHWC convolutions and linear layers with constant weights to packed matrix products.

The weight is packed here, once, at compile time, in the order in which the schedule walks it; what has no constant
weight, or groups, keeps TVM's own lowering.
"""

from __future__ import annotations

import math

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ...schedules.cpu.dot_bf16 import has_dot_bf16
from ...schedules.gpu import mma_fragments
from ...target import vector_bytes
from ...te.convolution import conv2d_packed, matmul_packed, pack_weight
from ...te.mma_convolution import MmaFragments, conv2d_mma, matmul_mma, pack_weight_mma


def pack_width(target: tvm.target.Target, out_channels: int) -> int:
    """Choose how many output channels lie side by side: two vectors of float32 where they fill, else one.

    A GPU reads a pack as one line of a tile, so it gets the same.
    """
    lanes = vector_bytes(target) // 4 if target.kind.name == "llvm" else 16
    return 2 * lanes if out_channels % (2 * lanes) == 0 else lanes


def pack_tiles(pixels: int, out_channels: int) -> int:
    """Choose the tiles of 16 output channels in a pack for tensor cores: two, one where that leaves less empty.

    And one where there are few pixels, so that there are blocks enough.
    """
    return 1 if pixels <= 64 or -(-out_channels // 32) * 32 > 1.1 * (-(-out_channels // 16) * 16) else 2


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """Legalize `relax.nn.conv2d` (NHWC/OIHW) and `relax.matmul` by a constant matrix for `target`.

    Args:
        tf32: multiply float32 on tensor cores, which keep 10 bits of its mantissa.
    """

    def __init__(self, target: tvm.target.Target, tf32: bool = False):
        self.target = target
        self.tf32 = tf32

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators as calls of tensor programs."""
        mutator = _Packer(mod, self.target, self.tf32)
        for name, func in mod.functions_items():
            if isinstance(func, relax.Function):
                mutator.builder_.update_func(name, mutator.visit_expr(func))
        return mutator.builder_.get()


@relax.expr_functor.mutator
class _Packer(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, target: tvm.target.Target, tf32: bool):
        super().__init__(mod)
        self.target = target
        self.tf32 = tf32

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
        window = {
            "stride": tuple(int(s) for s in attrs.strides),
            "padding": tuple(int(p) for p in attrs.padding),
            "dilation": tuple(int(d) for d in attrs.dilation),
        }
        array, hint = weight.value.numpy(), "conv2d"
        pixels = math.prod(int(d) for d in call.ty.shape.values[:3])
        fragments = self._fragments(call.args[0], pixels, array[0].size, out_channels)
        if fragments is None:
            packed = self._pack(array, str(call.ty.dtype))
            return self.builder_.call_te(
                conv2d_packed, call.args[0], packed, out_channels=out_channels, **window, primfunc_name_hint=hint
            )
        packed = relax.const(pack_weight_mma(array, fragments, pack_tiles(pixels, out_channels)))
        window |= {"fragments": fragments, "kernel_size": array.shape[2:], "out_channels": out_channels}
        return self.builder_.call_te(
            lambda x, w: conv2d_mma(x, w, **window), call.args[0], packed, primfunc_name_hint=hint
        )

    def _matmul(self, call: relax.Call) -> relax.Expr:
        x, weight = call.args
        if not isinstance(weight, GenericConst) or x.ty.ndim != 2 or weight.ty.ndim != 2:
            return call
        matrix = weight.value.numpy().T  # (O, I), as a convolution's weight
        rows, out_features = int(x.ty.shape.values[0]), int(matrix.shape[0])
        fragments = self._fragments(x, rows, matrix.shape[1], out_features)
        if fragments is not None:
            packed = relax.const(pack_weight_mma(matrix[:, :, None, None], fragments, pack_tiles(rows, out_features)))
            return self.builder_.call_te(
                lambda x, w: matmul_mma(x, w, out_features, fragments), x, packed, primfunc_name_hint="linear"
            )
        return self.builder_.call_te(
            matmul_packed,
            x,
            self._pack(matrix[:, :, None, None], str(call.ty.dtype)),
            out_channels=int(matrix.shape[0]),
            primfunc_name_hint="linear",
        )

    def _fragments(self, x: relax.Expr, pixels: int, depth: int, out_channels: int) -> MmaFragments | None:
        """Return how tensor cores take this product; None where it is for CUDA cores."""
        fragments = mma_fragments(self.target, str(x.ty.dtype), self.tf32)
        # bounds on an axis of one element are lost (TVM 0.27); for one pixel the schedule goes without, where warps share a sum
        if fragments is None or out_channels == 1 or pixels == 1 and depth <= fragments.chunk:
            return None
        return fragments

    def _pack(self, weight: np.ndarray, dtype: str) -> GenericConst:
        out_channels, in_channels, *_ = weight.shape
        pairs = dtype == "bfloat16" and in_channels % 2 == 0 and has_dot_bf16(self.target)
        return relax.const(pack_weight(weight, pack_width(self.target, out_channels), pairs))
