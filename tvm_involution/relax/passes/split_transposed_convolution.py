# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions as ordinary ones: stride * stride interleaved convolutions of the input, made by one.

TVM's own lowering convolves an input that is filled up with zeros, stride * stride times as many operations. Output
pixel q * stride + r sees the inputs q + d with weights r + padding - d * stride: so each r is a convolution with stride
1. Those that see the same inputs are one with more output channels: where stride and kernel are equal, and the windows
1x1, all of them are; a weight of 4x4 with stride 2 becomes four of 2x2, one of 3x3 four of 1x1 to 2x2, and nothing is
multiplied by zero. One convolution of all r, whose window is the union of theirs, is taken where it costs little more,
as where the output channels of one r do not fill a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant, to_float
from ..rewrite import rewrite_functions

# output channels of a vector, about
_LANES = 16
# several convolutions must leave out so much to pay
_WORTH = 0.8


@tvm.transform.module_pass(opt_level=0, name="SplitTransposedConvolution")
class SplitTransposedConvolution:
    """Rewrite `relax.nn.conv1d_transpose` and `conv2d_transpose` (NCHW) by constant weights without groups."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` without those transposed convolutions."""
        return rewrite_functions(mod, _Splitter(mod))


@relax.expr_functor.mutator
class _Splitter(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", None)
        axes = _axes(call) if name in ("relax.nn.conv1d_transpose", "relax.nn.conv2d_transpose") else None
        if axes is None:
            return call
        emit = self.builder_.emit
        rows, columns = axes
        x, weight = call.args[0], to_float(call.args[1])
        weight = weight if weight.ndim == 4 else weight[:, :, None]
        in_channels, out_channels = weight.shape[:2]
        n = int(x.ty.shape[0])
        if x.ty.ndim == 3:
            x = emit(relax.op.reshape(x, (n, in_channels, 1, columns.size)))
        whole = ([_Part.whole(rows)], [_Part.whole(columns)])
        parts = (rows.parts(), columns.parts())
        chosen = parts if _products(parts, out_channels) < _WORTH * _products(whole, out_channels) else whole

        def convolved(above: _Part, beside: _Part) -> relax.Expr:
            """Return (N, steps, steps, r of rows, r of columns, O) of some offsets."""
            taken = np.zeros((len(above), len(beside), out_channels, in_channels, above.window, beside.window))
            for r, u, k in above.taps(rows):
                for q, v, j in beside.taps(columns):
                    taken[r, q, :, :, u, v] = weight[:, :, k, j].T
            seen, padding = x, [*above.padding(rows), *beside.padding(columns)]
            if min(padding) < 0:
                begins = [max(0, -padding[0]), max(0, -padding[2])]
                ends = [rows.size + min(0, padding[1]), columns.size + min(0, padding[3])]
                seen = emit(relax.op.strided_slice(x, [2, 3], begins, ends))
                padding = [max(0, value) for value in padding]
            sums = emit(
                relax.op.nn.conv2d(
                    seen,
                    constant(taken.reshape(-1, *taken.shape[3:]), call.ty.dtype),
                    padding=(padding[0], padding[2], padding[1], padding[3]),
                )
            )
            sums = emit(relax.op.permute_dims(sums, [0, 2, 3, 1]))
            split = (n, rows.steps, columns.steps, len(above), len(beside), out_channels)
            return emit(relax.op.reshape(sums, split))

        bands = [self._joined([convolved(above, beside) for beside in chosen[1]], 4) for above in chosen[0]]
        sums = self._joined(bands, 3)
        laid_out = emit(relax.op.permute_dims(sums, [0, 1, 3, 2, 4, 5]))
        sizes = rows.steps * rows.stride, columns.steps * columns.stride
        laid_out = emit(relax.op.reshape(laid_out, (n, *sizes, out_channels)))
        if sizes != (rows.out, columns.out):
            laid_out = emit(relax.op.strided_slice(laid_out, [1, 2], [0, 0], [rows.out, columns.out]))
        laid_out = relax.op.permute_dims(laid_out, [0, 3, 1, 2])
        return laid_out if call.ty.ndim == 4 else relax.op.reshape(emit(laid_out), call.ty.shape)

    def _joined(self, values: list[relax.Expr], axis: int) -> relax.Expr:
        return values[0] if len(values) == 1 else self.builder_.emit(relax.op.concat(values, axis))


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

    def parts(self) -> list[_Part]:
        """Return the offsets by the places of the window that they see."""
        seen = [[place for r, place, _ in self.taps() if r == offset] or [0] for offset in range(self.stride)]
        starts = [r for r in range(self.stride) if r == 0 or seen[r] != seen[r - 1]]
        ends = [*starts[1:], self.stride]
        return [
            _Part(range(start, end), min(seen[start]), max(seen[start]) - min(seen[start]) + 1)
            for start, end in zip(starts, ends, strict=True)
        ]

    def taps(self) -> list[tuple[int, int, int]]:
        """Return which weight k belongs at which place in the window of r: (r, place, k)."""
        found = [
            (r, place, r + self.padding - (self.first + place) * self.stride)
            for r in range(self.stride)
            for place in range(self.window)
        ]
        return [tap for tap in found if 0 <= tap[2] < self.kernel]


@dataclass(frozen=True)
class _Part:
    """Offsets r along an axis whose outputs see inputs at the same places of the window."""

    offsets: range
    first: int
    """place of the window"""
    window: int

    @classmethod
    def whole(cls, axis: _Axis) -> _Part:
        """All offsets, which see the whole window."""
        return cls(range(axis.stride), 0, axis.window)

    def __len__(self) -> int:
        return len(self.offsets)

    def taps(self, axis: _Axis) -> list[tuple[int, int, int]]:
        """Return what `_Axis.taps` does, counted from the first offset and place."""
        found = [(r - self.offsets.start, place - self.first, k) for r, place, k in axis.taps() if r in self.offsets]
        return [tap for tap in found if 0 <= tap[1] < self.window]

    def padding(self, axis: _Axis) -> tuple[int, int]:
        """Return the zeros before and behind the input; below zero, what is left out of it."""
        return axis.before - self.first, axis.after - (axis.window - self.first - self.window)


def _products(parts: tuple[list[_Part], list[_Part]], out_channels: int) -> int:
    """Return how many products there are for each input channel and step, of outputs in whole vectors."""
    return sum(
        -(-len(above) * len(beside) * out_channels // _LANES) * _LANES * above.window * beside.window
        for above in parts[0]
        for beside in parts[1]
    )


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
