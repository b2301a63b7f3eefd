# SPDX-License-Identifier: Apache-2.0
"""Transpositions behind what can be computed in any order of axes, where they meet others: joined, most of them vanish.

Programs that keep their channels last transpose around each operator that PyTorch has for channels first alone, and
`ConvertLayout` leaves transpositions around what it does not know. Elementwise steps, means, norms, pooling, slices
and padding are computed on what was transposed, with other axes, and their results are transposed instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..operators import interpolation
from ..rewrite import is_call, rewrite_functions

_UNARY = {
    f"relax.{name}"
    for name in (
        "abs", "acos", "acosh", "asin", "asinh", "astype", "atan", "atanh", "ceil", "clip", "cos", "cosh", "erf", "exp",
        "floor", "isfinite", "isinf", "isnan", "log", "negative", "round", "rsqrt", "sigmoid", "sign", "sin", "sinh",
        "sqrt", "square", "tan", "tanh", "trunc", "nn.gelu", "nn.gelu_tanh", "nn.leakyrelu", "nn.relu", "nn.selu",
        "nn.silu", "nn.softplus",
    )
}  # fmt: skip
_BINARY = {
    f"relax.{name}"
    for name in (
        "add", "divide", "equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or",
        "maximum", "minimum", "multiply", "not_equal", "power", "subtract",
    )
}  # fmt: skip
_REDUCTIONS = {f"relax.{name}": getattr(relax.op, name) for name in ("max", "mean", "min", "prod", "std", "sum")}
_SOFTMAX = {f"relax.nn.{name}": getattr(relax.op.nn, name) for name in ("log_softmax", "softmax")}
_POOLS = {
    f"relax.nn.{name}": getattr(relax.op.nn, name)
    for axes in (1, 2, 3)
    for name in (f"adaptive_avg_pool{axes}d", f"avg_pool{axes}d", f"max_pool{axes}d")
}
_CHANNELS_LAST = {"NCW": "NWC", "NCHW": "NHWC", "NCDHW": "NDHWC"}

_Sunk = tuple[relax.Expr, Sequence[int]]
"""what is computed without the transposition, and the axes by which it is transposed then"""


@tvm.transform.module_pass(opt_level=0, name="SinkTransposes")
class SinkTransposes:
    """Compute before a transposition what can be, and replace `permute_dims` of `permute_dims` by one, or none."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls rewritten; a transposition that others use, too, stays for them."""
        return rewrite_functions(mod, _Sinker(mod))


@relax.expr_functor.mutator
class _Sinker(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if name == "relax.permute_dims":
            return _transposed(*self._joined(call))
        if not call.args or not _is_static(call):
            return call
        if name in _BINARY or name == "relax.concat":
            sunk = self._concatenation(call) if name == "relax.concat" else self._binary(call)
        else:
            sunk = self._sunk(name, call)
        if sunk is None:
            return call
        return _transposed(self.builder_.emit(sunk[0]), sunk[1])

    def _sunk(self, name: str, call: relax.Call) -> _Sunk | None:
        """Return an operator of one transposed tensor without its transposition; None where that is impossible."""
        rule = next((rule for names, rule in _RULES if name in names), None)
        before = None if rule is None else self._transposition(call.args[0])
        return None if rule is None or before is None else rule(call, *before)

    def _transposition(self, value: relax.Expr) -> tuple[relax.Expr, list[int]] | None:
        """Return what is transposed to `value`, and the axes; None where nothing is."""
        bound = self.lookup_binding(value) if isinstance(value, relax.Var) else None
        if not is_call(bound, "relax.permute_dims"):
            return None
        return bound.args[0], _axes(bound)

    def _joined(self, call: relax.Call) -> tuple[relax.Expr, list[int]]:
        axes, before = _axes(call), self._transposition(call.args[0])
        return (call.args[0], axes) if before is None else (before[0], [before[1][axis] for axis in axes])

    def _binary(self, call: relax.Call) -> _Sunk | None:
        transposed = [self._transposition(operand) for operand in call.args]
        widest = max(call.args, key=lambda operand: operand.ty.ndim)
        _, axes = next((one for one in transposed if one is not None and len(one[1]) == widest.ty.ndim), (None, None))
        if axes is None:
            return None
        operands = []
        for operand, one in zip(call.args, transposed, strict=True):
            if one is not None and one[1] == axes:
                operands.append(one[0])
                continue
            shape = [int(d) for d in operand.ty.shape]
            if 2 * math.prod(shape) > math.prod(int(d) for d in call.ty.shape) and not _is_constant(operand):
                return None  # as large as the result: it would be transposed instead
            emit = self.builder_.emit
            if math.prod(shape) > 1:
                whole = [1] * (len(axes) - len(shape)) + shape
                operand = operand if whole == shape else emit(relax.op.reshape(operand, whole))
                operand = emit(relax.op.permute_dims(operand, _inverse(axes)))
            elif shape:
                operand = emit(relax.op.reshape(operand, [1] * len(axes)))
            operands.append(operand)
        return relax.Call(call.op, operands, call.attrs, call.ty_args), axes

    def _concatenation(self, call: relax.Call) -> _Sunk | None:
        parts = call.args[0]
        fields = parts.fields if isinstance(parts, relax.Tuple) else getattr(self._bound(parts), "fields", ())
        found = [one for field in fields if (one := self._transposition(field)) is not None]
        if not found or len(found) < len(fields) or call.attrs.axis is None:
            return None
        axes = found[0][1]
        if any(others != axes for _, others in found):
            return None
        return relax.op.concat([source for source, _ in found], axes[int(call.attrs.axis) % len(axes)]), axes

    def _bound(self, value: relax.Expr) -> relax.Expr | None:
        return self.lookup_binding(value) if isinstance(value, relax.Var) else None


def _transposed(value: relax.Expr, axes: Sequence[int]) -> relax.Expr:
    return value if list(axes) == sorted(axes) else relax.op.permute_dims(value, list(axes))


def _elementwise(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk:
    return relax.Call(call.op, [x, *call.args[1:]], call.attrs, call.ty_args), axes


def _reduction(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    if call.attrs.axis is None:
        return None
    gone = [axes[int(axis) % len(axes)] for axis in call.attrs.axis]
    kept = bool(call.attrs.keepdims)
    left = axes if kept else [axis for axis in axes if axis not in gone]
    ranks = {axis: rank for rank, axis in enumerate(sorted(left))}
    return _REDUCTIONS[call.op.name](x, sorted(gone), kept), [ranks[axis] for axis in left]


def _softmax(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk:
    return _SOFTMAX[call.op.name](x, axes[int(call.attrs.axis) % len(axes)]), axes


def _pool(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    attrs, last = call.attrs, len(axes) - 1
    if axes != [0, last, *range(1, last)] or attrs.layout not in _CHANNELS_LAST or attrs.out_layout != attrs.layout:
        return None
    pool, layout = _POOLS[call.op.name], _CHANNELS_LAST[attrs.layout]
    if "adaptive" in call.op.name:
        return pool(x, attrs.output_size, layout), axes
    windows = (attrs.pool_size, attrs.strides, attrs.padding, attrs.dilation)
    return pool(x, *windows, bool(attrs.ceil_mode), bool(attrs.count_include_pad), layout), axes


def _norm(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    attrs, (gamma, beta) = call.attrs, call.args[1:]
    over = [axes[int(axis) % len(axes)] for axis in attrs.axes]
    exact = {"epsilon": float(attrs.epsilon), "center": bool(attrs.center), "scale": bool(attrs.scale)}
    if call.op.name == "relax.nn.layer_norm":
        # its weights lie as the axes do
        return (relax.op.nn.layer_norm(x, gamma, beta, over, **exact), axes) if over == sorted(over) else None
    channel = axes[int(attrs.channel_axis) % len(axes)]
    if call.op.name == "relax.nn.instance_norm":
        return relax.op.nn.instance_norm(x, gamma, beta, channel, sorted(over), **exact), axes
    return relax.op.nn.group_norm(x, gamma, beta, int(attrs.num_groups), channel, sorted(over), **exact), axes


def _take(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    if call.attrs.axis is None:
        return None
    # the places' axes stand where the axis stood
    own, count = axes[int(call.attrs.axis) % len(axes)], call.args[1].ty.ndim
    moved = [
        place
        for axis in axes
        for place in (range(own, own + count) if axis == own else [axis + (count - 1) * (axis > own)])
    ]
    return relax.op.take(x, call.args[1], own, call.attrs.mode), moved


def _flip(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk:
    return relax.op.flip(x, axes[int(call.attrs.axis) % len(axes)]), axes


def _pad(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk:
    widths = [int(width) for width in call.attrs.pad_width]
    moved = [width for axis in _inverse(axes) for width in widths[2 * axis : 2 * axis + 2]]
    return relax.op.nn.pad(x, moved, call.attrs.pad_mode, float(call.attrs.pad_value)), axes


def _slice(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    along = call.args[1]
    if not isinstance(along, relax.Tuple):
        return None
    moved = relax.Tuple([relax.prim_value(axes[int(axis.value) % len(axes)]) for axis in along.fields])
    return relax.Call(call.op, [x, moved, *call.args[2:]], call.attrs, call.ty_args), axes


def _resize(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    attrs = call.attrs
    if axes != [0, 3, 1, 2] or attrs.layout != "NCHW" or len(call.args) < 2:
        return None
    names = ("roi", "method", "coordinate_transformation_mode", "rounding_method", "cubic_alpha", "cubic_exclude",
             "extrapolation_value", "out_dtype")  # fmt: skip
    options = {name: getattr(attrs, name) for name in names}
    return relax.op.image.resize2d(x, call.args[1], layout="NHWC", **options), axes


def _interpolate(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    if axes != [0, 3, 1, 2] or str(call.attrs["layout"]) != "NCHW":
        return None
    return interpolation.with_layout(call, x, "NHWC"), axes


def _reshape(call: relax.Call, x: relax.Expr, axes: list[int]) -> _Sunk | None:
    """Axes that are split, and axes that are joined and lie beside each other as they do before the transposition."""
    groups = _groups([int(d) for d in call.args[0].ty.shape], [int(d) for d in call.ty.shape])
    moved = sorted(groups, key=lambda group: axes[group[0][0]] if group[0] else -1)
    if [axes[axis] for before, _ in moved for axis in before] != list(range(len(axes))):
        return None
    order = [axis for _, after in moved for axis in after]
    return relax.op.reshape(x, [int(call.ty.shape[axis]) for axis in order]), _inverse(order)


_Rule = Callable[[relax.Call, relax.Expr, list[int]], _Sunk | None]
_RULES: tuple[tuple[set[str], _Rule], ...] = (
    (_UNARY, _elementwise),
    (set(_REDUCTIONS), _reduction),
    (set(_SOFTMAX), _softmax),
    (set(_POOLS), _pool),
    ({f"relax.nn.{kind}_norm" for kind in ("group", "instance", "layer")}, _norm),
    ({"relax.take"}, _take),
    ({"relax.flip"}, _flip),
    ({"relax.nn.pad"}, _pad),
    ({"relax.strided_slice"}, _slice),
    ({"relax.image.resize2d"}, _resize),
    ({interpolation.OP_NAME}, _interpolate),
    ({"relax.reshape", "relax.expand_dims", "relax.squeeze"}, _reshape),
)


def _groups(before: list[int], after: list[int]) -> list[tuple[list[int], list[int]]]:
    """Return the least groups of axes `before` and `after` a reshape that hold as many numbers as each other."""
    groups: list[tuple[list[int], list[int]]] = []
    first, second = 0, 0
    while first < len(before) or second < len(after):
        own, other = [first][: len(before) - first], [second][: len(after) - second]
        first, second = first + len(own), second + len(other)
        while (have := math.prod(before[a] for a in own)) != (want := math.prod(after[a] for a in other)):
            if have < want:
                own.append(first)
                first += 1
            else:
                other.append(second)
                second += 1
        groups.append((own, other))
    return groups


def _inverse(axes: Sequence[int]) -> list[int]:
    return sorted(range(len(axes)), key=lambda place: axes[place])


def _is_constant(value: relax.Expr) -> bool:
    return isinstance(value, GenericConst)


def _is_static(call: relax.Call) -> bool:
    """Return whether the sizes of what is read and of the result are known, and none is 0."""
    tensors = [call, *call.args]
    return all(
        isinstance(d, tvm.tirx.IntImm) and int(d) > 0
        for tensor in tensors
        if isinstance(tensor.ty, relax.TensorType) and tensor.ty.shape is not None
        for d in tensor.ty.shape
    )


def _axes(call: relax.Call) -> list[int]:
    rank = call.args[0].ty.ndim
    return list(range(rank))[::-1] if call.attrs.axes is None else [int(axis) % rank for axis in call.attrs.axes]
