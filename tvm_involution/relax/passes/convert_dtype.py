# SPDX-License-Identifier: Apache-2.0
"""From float32 to a half type: inputs, weights and activations; kernels keep their sums in float32.

Runs after batch norms are folded, so that their statistics never exist in half precision.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant, to_float


@tvm.transform.module_pass(opt_level=0, name="ConvertDtype")
class ConvertDtype:
    """Make every float32 tensor of the module's Relax functions one of `dtype`; nothing where that is float32."""

    def __init__(self, dtype: str):
        self.dtype = dtype

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` in the wanted type."""
        if self.dtype == "float32":
            return mod
        converted = {}
        for name, func in mod.functions_items():
            converted[name.name_hint] = self._convert(func) if isinstance(func, relax.Function) else func
        return tvm.IRModule(converted)

    def _convert(self, func: relax.Function) -> relax.Function:
        params = [relax.Var(param.name, self._type(param.ty)) for param in func.params]
        mutator = _Retyper(self.dtype, dict(zip(func.params, params, strict=True)))
        body = mutator.visit_expr(func.body)
        return relax.Function(params, body, ret_ty=None, is_pure=func.is_pure, attrs=func.attrs)

    def _type(self, ty: relax.Type) -> relax.Type:
        if isinstance(ty, relax.TensorType) and str(ty.dtype) == "float32":
            return relax.TensorType(ty.shape, self.dtype)
        return ty


@relax.expr_functor.mutator
class _Retyper(relax.PyExprMutator):
    def __init__(self, dtype: str, params: dict[relax.Var, relax.Var]):
        super().__init__()
        self.dtype = dtype
        self.params = params

    def visit_var_(self, var: relax.Var) -> relax.Expr:
        return self.params.get(var, var) if var in self.params else super().visit_var_(var)

    def visit_generic_const_(self, value: GenericConst) -> relax.Expr:
        if isinstance(value.ty, relax.TensorType) and str(value.ty.dtype) == "float32":
            return constant(to_float(value), self.dtype)
        return value

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """Drop the output type that the importer wrote into convolutions and the like, so that it is inferred anew."""
        call = super().visit_call_(call)
        if str(getattr(call.attrs, "out_dtype", "")) != "float32":
            return call
        info = type(call.attrs).__tvm_ffi_type_info__
        fields = {field.name: getattr(call.attrs, field.name) for field in info.fields}
        fields["out_dtype"] = tvm_ffi.dtype(self.dtype)
        return relax.Call(call.op, call.args, tvm.ir.make_node(info.type_key, **fields))
