# SPDX-License-Identifier: Apache-2.0
"""Transpositions of transpositions: one, or none, as where a layer that wants channels last meets another."""

from __future__ import annotations

import tvm
from tvm import relax

from ..rewrite import rewrite_functions


@tvm.transform.module_pass(opt_level=0, name="JoinTransposes")
class JoinTransposes:
    """Replace `permute_dims` of `permute_dims` by one, or by what they leave as it is."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls joined; the inner one stays for others that use it."""
        return rewrite_functions(mod, _Joiner(mod))


@relax.expr_functor.mutator
class _Joiner(relax.PyExprMutator):
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        if not _is_permutation(call):
            return call
        source = self.lookup_binding(call.args[0]) if isinstance(call.args[0], relax.Var) else None
        axes = _axes(call)
        if source is not None and _is_permutation(source):
            inner = _axes(source)
            joined = [inner[axis] for axis in axes]
            if joined == sorted(joined):
                return source.args[0]
            return relax.op.permute_dims(source.args[0], joined)
        return call


def _is_permutation(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.permute_dims"


def _axes(call: relax.Call) -> list[int]:
    rank = call.args[0].ty.ndim
    return list(range(rank))[::-1] if call.attrs.axes is None else [int(axis) % rank for axis in call.attrs.axes]
