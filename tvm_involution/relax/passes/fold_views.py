# SPDX-License-Identifier: Apache-2.0
"""Reshaped, transposed and repeated weights, made with NumPy.

TVM's `FoldConstant` computes the same, but compiles a function for every shape that it meets.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant
from ..rewrite import rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="FoldViews")
class FoldViews:
    """Replace `reshape`, `permute_dims` and `broadcast_to` of constants by constants."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls folded."""
        return rewrite_functions(mod, _Folder(mod))


@relax.expr_functor.mutator
class _Folder(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if not call.args or not isinstance(source := self._bound(call.args[0]), GenericConst):
            return call
        if name in ("relax.reshape", "relax.broadcast_to"):
            shape = [int(d) for d in call.args[1].values]
            move = np.reshape if name == "relax.reshape" else np.broadcast_to
            return constant(move(source.value.numpy(), shape), str(source.ty.dtype))
        if name == "relax.permute_dims":
            axes = None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
            return constant(source.value.numpy().transpose(axes), str(source.ty.dtype))
        return call

    def _bound(self, value: relax.Expr) -> relax.Expr:
        """Return what a variable was bound to."""
        bound = self.lookup_binding(value) if isinstance(value, relax.Var) else None
        return value if bound is None else bound
