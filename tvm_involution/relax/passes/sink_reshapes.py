# SPDX-License-Identifier: Apache-2.0
"""Reshape products after what follows them elementwise, so that it runs on their tiles.

A 1-D convolution is a 2-D one of one row, whose result is reshaped; behind the bias and the activation that costs
nothing, and reshaping for the next convolution undoes it. Channels must be the last axis of both shapes.
"""

from __future__ import annotations

import tvm
from tvm import relax

from ..rewrite import Graph, is_call, rewrite_calls

_UNARY = ("relu", "leakyrelu", "gelu", "gelu_tanh", "silu", "softplus")
_ELEMENTWISE = {
    *(f"relax.nn.{name}" for name in _UNARY),
    *(f"relax.{name}" for name in ("sigmoid", "tanh", "exp", "log", "erf", "sqrt", "negative", "abs", "clip")),
    *(f"relax.{name}" for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")),
}


@tvm.transform.module_pass(opt_level=0, name="SinkReshapes")
class SinkReshapes:
    """Move `reshape` of tensor programs' results behind elementwise operators, and join those that meet."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with reshapes as late as they can be."""
        return rewrite_calls(mod, {"relax.reshape": _join, **dict.fromkeys(_ELEMENTWISE, _sink)})


def _sink(call: relax.Call, graph: Graph) -> relax.Expr:
    inner = next((found for argument in call.args if (found := _inner(argument, graph)) is not None), None)
    if inner is None or not isinstance(inner.ty.shape, relax.ShapeExpr):
        return call
    shape, result = inner.ty.shape, call.ty.shape
    arguments = [_as(argument, shape, result, graph) for argument in call.args]
    if any(argument is None for argument in arguments):
        return call
    moved = graph.emit(relax.Call(call.op, arguments, call.attrs))
    return relax.op.reshape(moved, result)


def _inner(value: relax.Expr, graph: Graph) -> relax.Expr | None:
    """Return what a value is the reshape of, if that is a product or elementwise behind one."""
    bound = graph.bound(value)
    if not is_call(bound, "relax.reshape"):
        return None
    inner = bound.args[0]
    made = graph.bound(inner)
    known = (
        made is not None and isinstance(made, relax.Call) and (is_call(made, "relax.call_tir") or _elementwise(made))
    )
    shapes = (inner.ty.shape, value.ty.shape)
    same = known and all(isinstance(s, relax.ShapeExpr) for s in shapes)
    return inner if same and _same(shapes[0].values[-1:], shapes[1].values[-1:]) else None


def _as(value: relax.Expr, shape: relax.ShapeExpr, result: relax.ShapeExpr, graph: Graph) -> relax.Expr | None:
    """Return an argument such that it meets tensors of `shape` as it met those of `result`; None if it can't."""
    if not isinstance(value.ty, relax.TensorType):
        return value
    sizes = value.ty.shape.values
    if _same(sizes, result.values):
        bound = graph.bound(value)
        inner = bound.args[0] if is_call(bound, "relax.reshape") else None
        if inner is not None and _same(inner.ty.shape.values, shape.values):
            return inner
        return graph.emit(relax.op.reshape(value, shape))
    if all(int(d) == 1 for d in sizes[:-1]):
        last = [sizes[-1]] if len(sizes) else []
        return graph.emit(relax.op.reshape(value, [1] * (len(shape.values) - len(last)) + last))
    return None


def _join(call: relax.Call, graph: Graph) -> relax.Expr:
    source = graph.bound(call.args[0])
    if not is_call(source, "relax.reshape"):
        return call
    inner = source.args[0]
    same = isinstance(inner.ty.shape, relax.ShapeExpr) and _same(inner.ty.shape.values, call.args[1].values)
    return inner if same else relax.op.reshape(inner, call.args[1])


def _elementwise(value: relax.Call) -> bool:
    return getattr(value.op, "name", "") in _ELEMENTWISE


def _same(one, other) -> bool:
    """Return whether sizes are the same, and known."""
    known = all(isinstance(d, tvm.tirx.IntImm) for d in (*one, *other))
    return known and [int(d) for d in one] == [int(d) for d in other]
