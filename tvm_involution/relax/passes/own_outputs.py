# SPDX-License-Identifier: Apache-2.0
"""Outputs with memory of their own: who writes into one must change neither an input nor the library's weights.

Runs behind the folding of constants, which would fold the copies, too.
"""

from __future__ import annotations

import tvm
from tvm import relax, te, tirx
from tvm.ir import GenericConst

from ..rewrite import update_functions


@tvm.transform.module_pass(opt_level=0, name="OwnOutputs")
class OwnOutputs:
    """Copy every output that is an input or a constant, or another view of one."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those outputs copied."""
        return update_functions(mod, lambda func, builder: _copy_outputs(mod, func, builder))


def _copy_outputs(mod: tvm.IRModule, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
    values = {binding.var: binding.value for block in func.body.blocks for binding in block.bindings}
    result = func.body.body
    bound = values.get(result, result) if isinstance(result, relax.Var) else result
    outputs = list(bound.fields) if isinstance(bound, relax.Tuple) else [bound]
    foreign = [_is_foreign(output, values, mod) for output in outputs]
    if not any(foreign):
        return func
    bindings: list[relax.Binding] = []

    def bind(value: relax.Expr) -> relax.Var:
        value = builder.normalize(value)
        var = relax.Var("output", value.ty)
        bindings.append(relax.VarBinding(var, value))
        return var

    parts = [bind(relax.TupleGetItem(result, i)) for i in range(len(outputs))] if len(outputs) > 1 else [result]
    copies = [
        bind(builder.call_te(_copy, part, primfunc_name_hint="copy_output")) if copied else part
        for part, copied in zip(parts, foreign, strict=True)
    ]
    body = bind(relax.Tuple(copies)) if isinstance(func.ret_ty, relax.TupleType) else copies[0]
    # no dataflow block: there a copy is taken for a reshape, and made a view
    blocks = [*func.body.blocks, relax.BindingBlock(bindings)]
    return relax.Function(func.params, relax.SeqExpr(blocks, body), func.ret_ty, func.is_pure, func.attrs)


def _copy(x: te.Tensor) -> te.Tensor:
    return te.compute(x.shape, lambda *indices: x(*indices), name="copy_output")


def _is_foreign(value: relax.Expr, values: dict[relax.Var, relax.Expr], mod: tvm.IRModule) -> bool:
    """Whether the memory of `value` is an input's or a constant's."""
    while isinstance(value, relax.Var) and value in values:
        value = values[value]
        if isinstance(value, relax.Call) and isinstance(func := _called(value, mod), tirx.PrimFunc):
            if not relax.analysis.has_reshape_pattern(func):
                return False
            value = value.args[1].fields[0]
    return isinstance(value, (relax.Var, GenericConst))


def _called(call: relax.Call, mod: tvm.IRModule) -> object:
    is_program = getattr(call.op, "name", "") == "relax.call_tir"
    return mod[call.args[0]] if is_program else None
