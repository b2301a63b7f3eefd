# SPDX-License-Identifier: Apache-2.0
"""Take the weights out of a module, so that a library maps them from its file instead of copying them to memory.

What the Relax VM embeds as constants it copies three times: out of the shared object, out of the serialized executable,
onto the device. What a function is given it takes as it lies.
"""

from __future__ import annotations

import hashlib

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

# what is smaller than a page gains nothing, and each argument costs a call a few nanoseconds
_LEAST_BYTES = 4096


def lift_weights(mod: tvm.IRModule) -> tuple[tvm.IRModule, list[tuple[str, np.ndarray]]]:
    """Return a module whose Relax functions take the weights behind their own arguments, and the weights.

    For a module that the pipeline is done with. Every function takes all weights, also those of others, and hands them
    on: so the list is one for all batch sizes, which share the weights that they have in common.

    Returns:
        The module, and the dtype and value of each weight, in the order of the arguments.
    """
    lifter = _Lifter(mod)
    for _, func in mod.functions_items():
        if isinstance(func, relax.Function):
            relax.analysis.post_order_visit(func, lifter.collect)
    for name, func in mod.functions_items():
        if isinstance(func, relax.Function):
            lifter.lift(name)
    others = {name: func for name, func in mod.functions_items() if not isinstance(func, relax.Function)}
    lifted = tvm.IRModule({**others, **lifter.functions}, attrs=mod.attrs, global_infos=mod.global_infos)
    return lifted, [(str(weight.ty.dtype), weight.value.numpy()) for weight in lifter.weights.values()]


@relax.expr_functor.mutator
class _Lifter(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.weights: dict[bytes, GenericConst] = {}
        """by dtype, shape and content"""
        self.functions: dict[tvm.ir.GlobalVar, relax.Function] = {}
        """those that are done"""
        self._mod = mod
        self._keys: dict[GenericConst, bytes] = {}
        self._params: dict[bytes, relax.Var] = {}
        self._names: dict[tvm.ir.GlobalVar, tvm.ir.GlobalVar] = {}

    def collect(self, expr: relax.Expr) -> None:
        if not isinstance(expr, GenericConst) or not isinstance(expr.ty, relax.TensorType) or expr in self._keys:
            return
        value = expr.value.numpy()
        if value.nbytes >= _LEAST_BYTES:
            key = hashlib.sha256(f"{expr.ty.dtype}{value.shape}".encode())
            key.update(value.tobytes())
            self._keys[expr] = key.digest()
            self.weights.setdefault(key.digest(), expr)

    def lift(self, name: tvm.ir.GlobalVar) -> tvm.ir.GlobalVar:
        """Return the new name of a function, whose type has the weights, too; those that it calls are done first."""
        if name not in self._names:
            func = self._mod[name]
            relax.analysis.post_order_visit(func, lambda expr: self.lift(expr) if self._is_function(expr) else None)
            self._params = {
                key: relax.Var(f"weight_{number}", weight.ty)
                for number, (key, weight) in enumerate(self.weights.items())
            }
            params = [*func.params, *self._params.values()]
            body = self.visit_expr(func.body)
            lifted = relax.Function(params, body, func.ret_ty, bool(func.is_pure), func.attrs)
            self._names[name] = tvm.ir.GlobalVar(name.name_hint)
            relax.expr._update_type(self._names[name], lifted.ty)
            self.functions[self._names[name]] = lifted
        return self._names[name]

    def _is_function(self, expr: relax.Expr) -> bool:
        return isinstance(expr, tvm.ir.GlobalVar) and isinstance(self._mod[expr], relax.Function)

    def visit_generic_const_(self, constant: GenericConst) -> relax.Expr:
        key = self._keys.get(constant)
        return constant if key is None else self._params[key]

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if self._is_function(call.op):
            return relax.Call(self._names[call.op], [*call.args, *self._params.values()], call.attrs, call.ty_args)
        return call
