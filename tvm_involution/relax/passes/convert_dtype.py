# SPDX-License-Identifier: Apache-2.0
"""From float32 to a half type, from float64 to float32: inputs, weights and activations.

Runs after batch norms are folded, so that their statistics never exist in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant, to_float
from ..dtypes import HALF_TYPES, in_half, retyped, tensor_dtype
from ..rewrite import is_call, update_functions

# Relax does not have it in bfloat16
_FLOAT32_ONLY = (tvm.ir.Op.get("relax.nn.group_norm"),)


@tvm.transform.module_pass(opt_level=0, name="ConvertDtype")
class ConvertDtype:
    """Make every float32 tensor of the module's Relax functions one of `dtype`, every float64 one of float32.

    Nothing where `dtype` is float32.
    """

    def __init__(self, dtype: str):
        self.dtype = dtype

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` in the wanted type."""
        if self.dtype == "float32":
            return mod
        types = in_half(self.dtype)
        return update_functions(mod, lambda func, _: _convert(func, types))


def _convert(func: relax.Function, types: Mapping[str, str]) -> relax.Function:
    params = []
    for param in func.params:
        wanted = types.get(tensor_dtype(param.ty))
        params.append(relax.Var(param.name, relax.TensorType(param.ty.shape, wanted) if wanted else param.ty))
    body = _Retyper(types, dict(zip(func.params, params, strict=True))).visit_expr(func.body)
    return relax.Function(params, body, ret_ty=None, is_pure=func.is_pure, attrs=func.attrs)


@relax.expr_functor.mutator
class _Retyper(relax.PyExprMutator):
    def __init__(self, types: Mapping[str, str], params: dict[relax.Var, relax.Var]):
        super().__init__()
        self.types = types
        self.params = params

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return self.params.get(var, var) if var in self.params else super().visit_var_(var)

    def visit_generic_const_(self, value: GenericConst) -> relax.Expr:
        wanted = self.types.get(tensor_dtype(value.ty))
        if wanted is None:
            return value
        # what computes in float32 takes a number as it is: a third in bfloat16 is not the exponent of a cube root
        if wanted in HALF_TYPES and value.ty.ndim == 0:
            return self.builder_.emit(relax.op.astype(value, wanted))
        return constant(to_float(value), wanted)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Retype what the importer wrote into attributes: the output of convolutions, of casts, of constants."""
        wanted = self.types.get(tensor_dtype(call.ty))
        arguments = [self.visit_expr(arg) for arg in call.args]
        if call.op in _FLOAT32_ONLY and wanted in HALF_TYPES:
            wide = [self.builder_.emit(relax.op.astype(arg, "float32")) for arg in arguments]
            return relax.op.astype(self.builder_.emit(relax.Call(call.op, wide, call.attrs)), wanted)
        return relax.Call(call.op, arguments, retyped(call.attrs, self.types), call.ty_args)


def unrounded(value: relax.Expr | None) -> GenericConst | None:
    """Return the number that `value` rounds to a half type; None where it is something else."""
    if is_call(value, "relax.astype"):
        (source,) = value.args
        return source if isinstance(source, GenericConst) and source.ty.ndim == 0 else None
    return None
