# SPDX-License-Identifier: Apache-2.0
"""Group, instance and layer norms as means, differences and products.

TVM's own programs take the variance as the mean of squares less the square of the mean, in one pass: of numbers around
300 that differ by one nothing is left of it in float32. Here the mean is subtracted first, as torch does. Means are
taken channel by channel and then over the channels of a group, so they work in any layout. On CPUs norms whose numbers
lie beside each other are one program (`te/norm.py`), which reads a row once.

Runs behind `ConvertDtype`: statistics of half types are float32 from the first sum to the last product.
"""

from __future__ import annotations

import functools

import tvm
from tvm import relax

from ...te.norm import mean_squares, norm_rows
from ..rewrite import Graph, rewrite_calls

_NORMS = ("relax.nn.group_norm", "relax.nn.instance_norm", "relax.nn.layer_norm")


@tvm.transform.module_pass(opt_level=0, name="SplitNorms")
class SplitNorms:
    """Rewrite `relax.nn.group_norm`, `relax.nn.instance_norm` and `relax.nn.layer_norm` of static shapes."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` without those norms."""
        rows = self.target.kind.name == "llvm"
        return rewrite_calls(mod, dict.fromkeys(_NORMS, functools.partial(_split, rows)))


def _split(rows: bool, call: relax.Call, graph: Graph) -> relax.Expr:
    if not all(isinstance(d, tvm.tirx.IntImm) for d in call.args[0].ty.shape.values):
        return call
    name, emit, op, attrs = call.op.name, graph.emit, relax.op, call.attrs
    x, gamma, beta = call.args
    dtype, shape = str(x.ty.dtype), [int(d) for d in x.ty.shape]
    wide = dtype if dtype == "float64" else "float32"
    axes = [int(axis) % len(shape) for axis in attrs.axes]
    # weights belong to what a layer norm goes over, to the channels of the others
    weighted = axes if name == _NORMS[2] else [int(attrs.channel_axis) % len(shape)]
    groups = int(attrs.num_groups) if name == _NORMS[0] else 0
    leading = _leading(name, [axis for axis in axes if name == _NORMS[2] or shape[axis] > 1], weighted, shape)
    if rows and leading is not None:
        # an instance norm is a group norm of one channel a group
        parts = None if name == _NORMS[2] else groups or shape[1]
        return graph.builder.call_te(norm_rows, x, gamma, beta, leading, float(attrs.epsilon), parts)

    def widened(value: relax.Expr) -> relax.Expr:
        return value if str(value.ty.dtype) == wide else emit(op.astype(value, wide))

    def mean(value: relax.Expr) -> relax.Expr:
        return by_groups(emit(op.mean(value, axes, keepdims=True)) if axes else value)

    def by_groups(value: relax.Expr) -> relax.Expr:
        if not groups:
            return value
        kept = [int(d) for d in value.ty.shape]
        batch, channels = kept[0], kept[weighted[0]]
        grouped = emit(op.reshape(value, (batch, groups, channels // groups)))
        grouped = emit(op.mean(grouped, [2], keepdims=True))
        grouped = emit(op.broadcast_to(grouped, (batch, groups, channels // groups)))
        return emit(op.reshape(grouped, kept))

    def placed(value: relax.Expr) -> relax.Expr:
        along = [d if axis in weighted else 1 for axis, d in enumerate(shape)]
        return emit(op.reshape(widened(value), along))

    given, x = x, widened(x)
    middle = mean(x)
    # one program, else the squares would be written to memory and read again
    squares = functools.partial(mean_squares, axes=axes)
    variance = by_groups(emit(graph.builder.call_te(squares, given, middle, primfunc_name_hint="mean_squares")))
    scale = emit(op.rsqrt(emit(op.add(variance, relax.const(float(attrs.epsilon), wide)))))
    scale = emit(op.multiply(scale, placed(gamma)))
    # subtracted once more: kept, the differences would be written to memory and read again
    result = emit(op.multiply(emit(op.subtract(x, middle)), scale))
    result = op.add(result, placed(beta))
    return result if dtype == wide else op.astype(emit(result), dtype)


def _leading(name: str, axes: list[int], channels: list[int], shape: list[int]) -> int | None:
    """Return how many axes are those of a norm's rows; None where a row's numbers do not lie beside each other."""
    if name == _NORMS[2]:
        return axes[0] if axes and axes == list(range(axes[0], len(shape))) else None
    behind = [axis for axis in range(2, len(shape)) if shape[axis] > 1]
    return 1 if channels == [1] and axes == behind else None
