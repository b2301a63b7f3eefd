# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions as ordinary ones: stride * stride interleaved convolutions of the input, made by one.

TVM's own lowering convolves an input that is filled up with zeros, stride * stride times as many operations. Output
pixel q * stride + r sees the inputs q + d with weights r + padding - d * stride: so each r is a convolution with stride
1, and all of them together are one with stride * stride times as many output channels, whose windows are the union of
theirs. A weight of 4x4 with stride 2 becomes four of 3x3, 9 products for 4, which Winograd's algorithm halves again;
where stride and kernel are equal the windows are 1x1, and nothing is multiplied by zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant, to_float
from ..rewrite import Graph, rewrite_calls


@tvm.transform.module_pass(opt_level=0, name="SplitTransposedConvolution")
class SplitTransposedConvolution:
    """Rewrite `relax.nn.conv1d_transpose` and `conv2d_transpose` (NCHW) by constant weights without groups."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` without those transposed convolutions."""
        return rewrite_calls(mod, {"relax.nn.conv1d_transpose": _split, "relax.nn.conv2d_transpose": _split})


def _split(call: relax.Call, graph: Graph) -> relax.Expr:
    axes, emit = _axes(call), graph.emit
    if axes is None:
        return call
    rows, columns = axes
    x, weight = call.args[0], to_float(call.args[1])
    weight = weight if weight.ndim == 4 else weight[:, :, None]
    in_channels, out_channels = weight.shape[:2]
    n = int(x.ty.shape[0])
    if x.ty.ndim == 3:
        x = emit(relax.op.reshape(x, (n, in_channels, 1, columns.size)))
    # (r of rows, r of columns, O, I, window)
    parts = np.zeros((rows.stride, columns.stride, out_channels, in_channels, rows.window, columns.window))
    for r, u, k in rows.taps():
        for q, v, j in columns.taps():
            parts[r, q, :, :, u, v] = weight[:, :, k, j].T
    padding = (rows.before, columns.before, rows.after, columns.after)
    sums = emit(relax.op.nn.conv2d(x, constant(parts.reshape(-1, *parts.shape[3:]), call.ty.dtype), padding=padding))
    sums = emit(relax.op.permute_dims(sums, [0, 2, 3, 1]))
    split = (n, rows.steps, columns.steps, rows.stride, columns.stride, out_channels)
    sums = emit(relax.op.reshape(sums, split))
    laid_out = emit(relax.op.permute_dims(sums, [0, 1, 3, 2, 4, 5]))
    sizes = rows.steps * rows.stride, columns.steps * columns.stride
    laid_out = emit(relax.op.reshape(laid_out, (n, *sizes, out_channels)))
    if sizes != (rows.out, columns.out):
        laid_out = emit(relax.op.strided_slice(laid_out, [1, 2], [0, 0], [rows.out, columns.out]))
    laid_out = relax.op.permute_dims(laid_out, [0, 3, 1, 2])
    return laid_out if call.ty.ndim == 4 else relax.op.reshape(emit(laid_out), call.ty.shape)


@dataclass(frozen=True)
class _Axis:
    """One axis of a transposed convolution."""

    size: int
    """of the input"""
    out: int
    kernel: int
    stride: int
    padding: int

    @property
    def first(self) -> int:
        """The least d of the inputs q + d that an output sees."""
        return -((self.kernel - 1 - self.padding) // self.stride)

    @property
    def window(self) -> int:
        """Inputs that the outputs q * stride + r see together."""
        return (self.stride - 1 + self.padding) // self.stride - self.first + 1

    @property
    def steps(self) -> int:
        """Values of q."""
        return -(-self.out // self.stride)

    @property
    def before(self) -> int:
        """Zeros before the input."""
        return -self.first

    @property
    def after(self) -> int:
        """Zeros behind the input."""
        return self.steps + self.window - 1 - self.before - self.size

    def taps(self) -> list[tuple[int, int, int]]:
        """Return which weight k belongs at which place in the window of r: (r, place, k)."""
        found = [
            (r, place, r + self.padding - (self.first + place) * self.stride)
            for r in range(self.stride)
            for place in range(self.window)
        ]
        return [tap for tap in found if 0 <= tap[2] < self.kernel]


def _axes(call: relax.Call) -> tuple[_Axis, _Axis] | None:
    """Return rows and columns; None where the weight is no constant, or an ordinary convolution can't do it."""
    weight, attrs = call.args[1], call.attrs
    shapes = (call.args[0].ty.shape, call.ty.shape)
    if not isinstance(weight, GenericConst) or attrs.groups != 1 or any(int(d) != 1 for d in attrs.dilation):
        return None
    known = all(isinstance(d, tvm.tirx.IntImm) for shape in shapes for d in shape.values)
    if not known or attrs.data_layout not in ("NCW", "NCHW") or attrs.kernel_layout not in ("IOW", "IOHW"):
        return None
    rank = len(attrs.strides)
    padding, behind = [int(p) for p in attrs.padding[:rank]], [int(p) for p in attrs.padding[rank:]]
    axes = [
        _axis(int(size), int(out), int(kernel), int(stride), pad)
        for size, out, kernel, stride, pad in zip(
            shapes[0].values[2:], shapes[1].values[2:], weight.value.shape[2:], attrs.strides, padding, strict=True
        )
    ]
    if padding != behind or any(axis.before < 0 or axis.after < 0 for axis in axes):
        return None
    rows, columns = axes if rank == 2 else (_Axis(1, 1, 1, 1, 0), axes[0])
    return rows, columns


def _axis(size: int, out: int, kernel: int, stride: int, padding: int) -> _Axis:
    # one input is multiplied by the whole kernel, whatever the stride
    alone = size == 1 and padding == 0 and out == kernel
    return _Axis(size, out, kernel, kernel if alone else stride, padding)
