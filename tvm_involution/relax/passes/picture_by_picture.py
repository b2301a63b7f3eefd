# SPDX-License-Identifier: Apache-2.0
"""Run the first layers of a batch picture by picture and the last ones together, on CPUs with few cores.

The first layers have large feature maps and few weights: one picture's maps stay in the caches, a batch's come from
memory for every kernel. Of the last layers it is the weights that come from memory, once for a batch. The cut lies
where the fewest bytes do.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ...target import CACHE_BYTES, core_count
from ..operators import local_attention
from ..operators.involution import OP_NAMES
from ..sizes import tensor_bytes

# with more cores one picture is too little work for all of them
_MAX_CORES = 4
# operators that read and write feature maps; what is elementwise joins them
_KERNELS = {
    *(f"relax.nn.{kind}{axes}d" for kind in ("conv", "max_pool", "avg_pool") for axes in (1, 2, 3)),
    *OP_NAMES.values(),
    local_attention.OP_NAME,
}
# operators that treat the pictures of a batch, along the first axis, independently of each other
_INDEPENDENT = _KERNELS | {
    "relax.add",
    "relax.clip",
    "relax.divide",
    "relax.maximum",
    "relax.minimum",
    "relax.multiply",
    "relax.nn.gelu",
    "relax.nn.leakyrelu",
    "relax.nn.relu",
    "relax.nn.silu",
    "relax.permute_dims",
    "relax.sigmoid",
    "relax.subtract",
    "relax.tanh",
}


@tvm.transform.module_pass(opt_level=0, name="PictureByPicture")
class PictureByPicture:
    """Move the first layers of each function of a batch into a function of one picture, where it pays."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those functions divided."""
        if self.target.kind.name != "llvm" or core_count(self.target) > _MAX_CORES:
            return mod
        for name, func in mod.functions_items():
            if isinstance(func, relax.Function) and (count := _layers_apart(func)):
                mod = _divide(mod, name, func, count)
        return mod


def _layers_apart(func: relax.Function) -> int:
    """Return how many bindings to run picture by picture, 0 for none."""
    blocks = func.body.blocks
    if len(func.params) != 1 or len(blocks) != 1:
        return 0
    batch = _batch(func.params[0])
    bindings = blocks[0].bindings
    if not all(isinstance(binding, relax.VarBinding) for binding in bindings):
        return 0
    largest = max((tensor_bytes(binding.var.ty) for binding in bindings), default=0)
    # smaller batches stay in the caches, whatever runs together
    if batch < 2 or largest < CACHE_BYTES:
        return 0
    last_uses = _last_uses(func, bindings)
    cost = sum(_map_bytes(binding.value, batch) + _weight_bytes(binding.value) / batch for binding in bindings)
    best, cheapest = 0, cost
    needed = last_uses.get(func.params[0], 0)
    for count, binding in enumerate(bindings, 1):
        if not _is_independent(binding, batch):
            break
        cost += _weight_bytes(binding.value) * (1 - 1 / batch) - _map_bytes(binding.value, batch)
        # only the last value may be needed behind the cut
        if cost < cheapest and needed <= count:
            best, cheapest = count, cost
        needed = max(needed, last_uses.get(binding.var, 0))
    return best


def _is_independent(binding: relax.Binding, batch: int) -> bool:
    """Return whether a picture of the result needs that picture of the arguments alone."""
    call = binding.value
    if not isinstance(call, relax.Call) or getattr(call.op, "name", "") not in _INDEPENDENT:
        return False
    if not _is_batched(binding.var, batch) or not all(isinstance(arg, (relax.Var, GenericConst)) for arg in call.args):
        return False
    if call.op.name == "relax.permute_dims" and (call.attrs.axes is None or int(call.attrs.axes[0]) != 0):
        return False
    if call.op.name.startswith("relax.nn.conv"):
        return _is_batched(call.args[0], batch) and isinstance(call.args[1], GenericConst)
    rank = binding.var.ty.ndim
    return all(
        _is_batched(arg, batch) and arg.ty.ndim == rank
        if isinstance(arg, relax.Var)
        else arg.ty.ndim < rank or int(arg.ty.shape.values[0]) == 1
        for arg in call.args
    )


def _last_uses(func: relax.Function, bindings: Sequence[relax.Binding]) -> dict[relax.Var, int]:
    """Return the number of the last binding, from 1, that uses each variable; the function's result comes after all."""
    values = [*(binding.value for binding in bindings), func.body.body]
    return {var: number for number, value in enumerate(values, 1) for var in relax.analysis.free_vars(value)}


def _divide(mod: tvm.IRModule, name: tvm.ir.GlobalVar, func: relax.Function, count: int) -> tvm.IRModule:
    """Return `mod` with the first `count` bindings of `func` in a function of their own, called for each picture."""
    (x,), (block,) = func.params, func.body.blocks
    batch, picture_type = _batch(x), _one(x.ty)
    first, rest = block.bindings[:count], block.bindings[count:]
    builder = relax.BlockBuilder(mod)
    picture = relax.Var("picture", picture_type)
    with builder.function(f"{name.name_hint}_picture", [picture], private=True):
        with builder.dataflow():
            values = {x: picture}
            for binding in first:
                values[binding.var] = builder.emit(_replaced(binding.value, values))
            result = builder.emit_output(values[first[-1].var])
        one = builder.emit_func_output(result)
    apart = builder.get()
    builder = relax.BlockBuilder()
    param = relax.Var(x.name, x.ty)
    with builder.function(name.name_hint, [param], attrs=dict(func.attrs or {})):
        with builder.dataflow():
            pictures = [relax.op.strided_slice(param, [0], [i], [i + 1]) for i in range(batch)]
            results = [builder.emit(relax.Call(one, [builder.emit(picture)])) for picture in pictures]
            values = {x: param, first[-1].var: builder.emit(relax.op.concat(results, 0))}
            for binding in rest:
                values[binding.var] = builder.emit(_replaced(binding.value, values))
            returned = builder.emit_output(_replaced(func.body.body, values))
        builder.emit_func_output(returned)
    apart[name] = builder.get()[name.name_hint]
    return apart


def _replaced(value: relax.Expr, values: dict[relax.Var, relax.Var]) -> relax.Expr:
    if isinstance(value, relax.Call):
        # a new call, whose type is inferred anew: that of one picture has another shape
        return relax.Call(value.op, [_replaced(arg, values) for arg in value.args], value.attrs, value.ty_args)
    if isinstance(value, relax.Tuple):
        return relax.Tuple([_replaced(field, values) for field in value.fields])
    if isinstance(value, relax.TupleGetItem):
        return relax.TupleGetItem(_replaced(value.tuple_value, values), value.index)
    return values.get(value, value) if isinstance(value, relax.Var) else value


def _batch(var: relax.Var) -> int:
    ty = var.ty
    known = isinstance(ty, relax.TensorType) and isinstance(ty.shape, relax.ShapeExpr) and ty.ndim > 0
    size = ty.shape.values[0] if known else None
    return int(size) if isinstance(size, tvm.tirx.IntImm) else 0


def _is_batched(value: relax.Expr, batch: int) -> bool:
    return isinstance(value, relax.Var) and _batch(value) == batch


def _one(ty: relax.TensorType) -> relax.TensorType:
    return relax.TensorType([1, *ty.shape.values[1:]], ty.dtype)


def _map_bytes(value: relax.Expr, batch: int) -> float:
    """Return the bytes of a picture's feature maps that `value` reads and writes."""
    if not isinstance(value, relax.Call) or getattr(value.op, "name", "") not in _KERNELS:
        return 0
    maps = [value, *(arg for arg in value.args if isinstance(arg, relax.Var))]
    return sum(tensor_bytes(each.ty) for each in maps) / batch


def _weight_bytes(value: relax.Expr) -> int:
    return sum(tensor_bytes(arg.ty) for arg in getattr(value, "args", ()) if isinstance(arg, GenericConst))
