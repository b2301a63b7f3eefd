# SPDX-License-Identifier: Apache-2.0
"""Multiply the bytes of programs that are quantized already (`frontend/conversions/quantized.py`).

    conv2d(scale * (x - zero), scales * w) of bytes x and w    becomes    conv2d(x, w) * (scale * scales)

with sums in int32. What does not fit stays as it is, which is right, too: its weights become float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ...schedules.cpu.dot_int8 import has_dot_int8, wants_signed
from ..constants import to_float
from ..integer_products import CONV, LINEAR, MIDDLE, integer_products
from ..rewrite import Graph, is_call, rewrite_calls

# input channels from which products of four bytes pay; a first convolution sees three
_FEWEST_INPUTS = 8
_BYTES = ("int8", "uint8")


@dataclass(frozen=True)
class _Dequantized:
    """`scale * (bytes - zero)`."""

    bytes_: relax.Expr
    scale: np.ndarray
    zero: np.ndarray


@tvm.transform.module_pass(opt_level=0, name="MultiplyBytes")
class MultiplyBytes:
    """Rewrite 2-D convolutions in NCHW without groups, and products with constant matrices, for a CPU."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with them rewritten; on CPUs without dot products of bytes `mod` itself."""
        if not has_dot_int8(self.target):
            return mod
        return rewrite_calls(mod, {CONV: self._multiply, LINEAR: self._multiply})

    def _multiply(self, call: relax.Call, graph: Graph) -> relax.Expr:
        x, weight = (_dequantized(arg, graph) for arg in call.args)
        if x is None or weight is None or x.scale.size != 1 or x.zero.size != 1 or weight.zero.any():
            return call
        if not isinstance(weight.bytes_, GenericConst) or str(weight.bytes_.ty.dtype) != "int8":
            return call
        whole, scale = weight.bytes_.value.numpy(), weight.scale
        if is_call(call, LINEAR):
            if whole.ndim != 2 or x.bytes_.ty.ndim != 2:
                return call
            whole, scale = whole.T, scale.T
        elif not _is_plain(call):
            return call
        # one scale for all, or one for each output channel
        if whole.shape[1] < _FEWEST_INPUTS or scale.size not in (1, scale.shape[0]):
            return call
        scales = np.broadcast_to(scale.reshape(-1), len(whole))
        found, zero = self._as_wanted(x.bytes_, int(x.zero.reshape(())), graph)
        return integer_products(call, found, float(x.scale.reshape(())), zero, whole, scales, graph.emit)

    def _as_wanted(self, x: relax.Expr, zero: int, graph: Graph) -> tuple[relax.Expr, int]:
        """Return bytes and their zero with the sign, or without, that the CPU's instruction wants."""
        signed = wants_signed(self.target)
        if (str(x.ty.dtype) == "int8") == signed:
            return x, zero
        shift = -MIDDLE if signed else MIDDLE
        moved = graph.emit(relax.op.add(graph.emit(relax.op.astype(x, "int32")), relax.const(shift)))
        return graph.emit(relax.op.astype(moved, "int8" if signed else "uint8")), zero + int(shift)


def _is_plain(conv: relax.Call) -> bool:
    attrs = conv.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    return layouts == ("NCHW", "OIHW", "NCHW") and int(attrs.groups) == 1


def _dequantized(value: relax.Expr, graph: Graph) -> _Dequantized | None:
    """Return what `value` is dequantized from, transposed where it is a transposed constant; None where it is not."""
    call = graph.bound(value)
    if is_call(call, "relax.permute_dims"):
        found = _dequantized(call.args[0], graph)
        if found is None or not isinstance(found.bytes_, GenericConst):
            return None
        axes = [int(axis) for axis in call.attrs.axes] if call.attrs.axes is not None else None
        turned = [np.transpose(array, axes) for array in (found.bytes_.value.numpy(), found.scale, found.zero)]
        return _Dequantized(relax.const(np.ascontiguousarray(turned[0])), turned[1], turned[2])
    if not is_call(call, "relax.multiply") or not isinstance(call.args[1], GenericConst):
        return None
    scale, inner = to_float(call.args[1]), graph.bound(call.args[0])
    zero = np.zeros((1,) * scale.ndim)
    if is_call(inner, "relax.subtract") and isinstance(inner.args[1], GenericConst):
        zero, inner = to_float(inner.args[1]), graph.bound(inner.args[0])
    if not is_call(inner, "relax.astype") or str(inner.args[0].ty.dtype) not in _BYTES:
        return None
    return _Dequantized(inner.args[0], scale, zero)
