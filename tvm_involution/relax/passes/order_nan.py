# SPDX-License-Identifier: Apache-2.0
"""NaN in comparisons, orders and products with zero, as torch has it.

Where values are ordered (`argmax`, `argmin`, `argsort`, `sort`, `topk`), NaN is more than infinity, in `argmin` less
than all: TVM's comparisons with it are false, so that what comes out depends on where it stands. Integers in the same
order are ordered in their place.

TVM simplifies `x != x`, which is how NaN is asked for, to false, and `x * 0` and `0 / x` to 0, which NaN and infinity
are not.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from ..constants import constant, to_float
from ..rewrite import Graph, RewriteCall, rewrite_calls

_BITS = {"float16": 32, "bfloat16": 32, "float32": 32, "float64": 64}


@tvm.transform.module_pass(opt_level=0, name="OrderNan")
class OrderNan:
    """Rewrite those operators where their input is of floating-point numbers."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with them rewritten."""
        return rewrite_calls(mod, dict.fromkeys(_REWRITES, _rewrite))


def _rewrite(call: relax.Call, graph: Graph) -> relax.Expr:
    of_floats = str(getattr(call.args[0].ty, "dtype", "")) in _BITS
    return _REWRITES[call.op.name](call, graph) if of_floats else call


def _arg_extremum(call: relax.Call, graph: Graph) -> relax.Expr:
    return relax.Call(call.op, [_keys(call.args[0], graph, nan_is_least="argmin" in call.op.name)], call.attrs)


def _argsort(call: relax.Call, graph: Graph) -> relax.Expr:
    return relax.Call(call.op, [_keys(call.args[0], graph)], call.attrs)


def _sort(call: relax.Call, graph: Graph) -> relax.Expr:
    x, axis = call.args[0], int(call.attrs.axis)
    order = graph.emit(relax.op.argsort(_keys(x, graph), axis, bool(call.attrs.descending), dtype="int64"))
    return relax.op.gather_elements(x, order, _from_front(axis, x))


def _topk(call: relax.Call, graph: Graph) -> relax.Expr:
    x, attrs = call.args[0], call.attrs
    axis, wanted = int(attrs.axis), str(attrs.ret_type)
    keys = _keys(x, graph)
    places = graph.emit(relax.op.topk(keys, int(attrs.k), axis, "indices", bool(attrs.largest), str(attrs.dtype)))
    if wanted == "indices":
        return places
    values = relax.op.gather_elements(x, places, _from_front(axis, x))
    return values if wanted == "values" else relax.Tuple([graph.emit(values), places])


def _comparison(call: relax.Call, graph: Graph) -> relax.Expr:
    x, y = call.args
    if not x.same_as(y):
        return call
    # TVM does not ask this of bfloat16
    is_nan = relax.op.isnan(graph.emit(relax.op.astype(x, "float32")) if str(x.ty.dtype) == "bfloat16" else x)
    return is_nan if call.op.name == "relax.not_equal" else relax.op.logical_not(graph.emit(is_nan))


def _arithmetic(call: relax.Call, graph: Graph) -> relax.Expr:
    """Hide a scalar zero in a tensor, whose value no simplification looks at."""
    dividend, *_ = call.args
    if not (any(map(_is_zero, call.args)) if call.op.name == "relax.multiply" else _is_zero(dividend)):
        return call
    args = [constant(np.zeros(1), x.ty.dtype) if _is_zero(x) else x for x in call.args]
    result = relax.Call(call.op, args, call.attrs)
    return result if call.ty.shape.values else relax.op.reshape(graph.emit(result), call.ty.shape)


_REWRITES: dict[str, RewriteCall] = {
    "relax.argmax": _arg_extremum,
    "relax.argmin": _arg_extremum,
    "relax.argsort": _argsort,
    "relax.sort": _sort,
    "relax.topk": _topk,
    "relax.equal": _comparison,
    "relax.not_equal": _comparison,
    "relax.multiply": _arithmetic,
    "relax.divide": _arithmetic,
}


def _is_zero(x: relax.Expr) -> bool:
    return isinstance(x, GenericConst) and not x.ty.shape.values and to_float(x) == 0


def _keys(x: relax.Expr, graph: Graph, nan_is_least: bool = False) -> relax.Expr:
    """Return integers in the order of the values of `x`."""
    return graph.builder.emit_te(ordered_keys, x, nan_is_least=nan_is_least, primfunc_name_hint="ordered_keys")


def ordered_keys(x: te.Tensor, nan_is_least: bool = False) -> te.Tensor:
    """Return int32, int64 for float64, of the shape of `x` and in the order of its values; the zeros are one.

    Args:
        nan_is_least: NaN comes before all others; after them by default.
    """
    bits = _BITS[str(x.dtype)]
    wide, integer = f"float{bits}", f"int{bits}"
    highest = 2 ** (bits - 1) - 1

    def key(*at):
        value = x(*at).astype(wide)
        number = tirx.reinterpret(integer, value)
        # the magnitude of negative numbers grows downwards
        number = tirx.Select(number < tirx.const(0, integer), number ^ tirx.const(highest, integer), number)
        number = tirx.Select(tirx.EQ(value, tirx.const(0, wide)), tirx.const(0, integer), number)
        nan = tirx.const(-highest - 1 if nan_is_least else highest, integer)
        return tirx.Select(tirx.isnan(value), nan, number)

    return te.compute(x.shape, key, name="ordered_keys", tag="elemwise")


def _from_front(axis: int, x: relax.Expr) -> int:
    return axis % len(x.ty.shape.values)
