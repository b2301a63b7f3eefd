# SPDX-License-Identifier: Apache-2.0
"""Compute at compile time what is computed of no input: a weight norm, the indices and weights of an interpolation.

Runs while the network is in float32, so that half types round its results and not the way to them: positions in an
image would be rounded to others. TVM's `FoldConstant` folds nothing that begins with `arange`, and makes a program of
every operator to see whether it can be folded, which takes time and fails for some.
"""

from __future__ import annotations

import math

import tvm
from tvm import relax
from tvm.ir import GenericConst

from ...target import reference_cpu
from ..rewrite import update_functions

# what is larger and made of no weight is cheaper to compute than to store
_LARGEST_FROM_NOTHING = 1 << 18


@tvm.transform.module_pass(opt_level=0, name="FoldWeights")
class FoldWeights:
    """Replace calls whose arguments are all known by their values."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls folded; what led to them is left for `DeadCodeElimination`."""
        return update_functions(mod, lambda func, _: _fold(func))


def _fold(func: relax.Function) -> relax.Function:
    known: dict[relax.Var, relax.Expr] = {}
    weighty: set[relax.Var] = set()
    wanted: dict[relax.Var, None] = {}
    for block in func.body.blocks:
        for binding in block.bindings:
            used = relax.analysis.free_vars(binding.value)
            if all(var in known for var in used):
                known[binding.var] = binding.value
                if _holds_weight(binding.value) or weighty & set(used):
                    weighty.add(binding.var)
            else:
                wanted |= dict.fromkeys(var for var in used if _is_folded(var, known, var in weighty))
    return _Replacer(_evaluate(known, list(wanted))).visit_expr(func) if wanted else func


def _is_folded(var: relax.Var, known: dict[relax.Var, relax.Expr], weighty: bool) -> bool:
    if not isinstance(known.get(var), relax.Call) or not isinstance(var.ty, relax.TensorType):
        return False
    return weighty or math.prod(int(d) for d in var.ty.shape.values) <= _LARGEST_FROM_NOTHING


def _holds_weight(value: relax.Expr) -> bool:
    found = []
    relax.analysis.post_order_visit(value, lambda e: found.append(e) if isinstance(e, GenericConst) else None)
    return any(constant.ty.ndim for constant in found)


def _evaluate(known: dict[relax.Var, relax.Expr], wanted: list[relax.Var]) -> dict[relax.Var, GenericConst]:
    outputs = [relax.Var(var.name, var.ty) for var in wanted]
    bindings = [*known.items(), *zip(outputs, wanted, strict=True)]
    block = relax.DataflowBlock([relax.VarBinding(var, value) for var, value in bindings])
    returned = relax.TupleType([var.ty for var in wanted])
    func = relax.Function([], relax.SeqExpr([block], relax.Tuple(outputs)), returned)
    mod = relax.transform.DeadCodeElimination()(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    with reference_cpu() as cpu:
        values = relax.VirtualMachine(tvm.compile(mod, cpu), tvm.cpu())["main"]()
    return {var: relax.const(value.numpy(), str(var.ty.dtype)) for var, value in zip(wanted, values, strict=True)}


@relax.expr_functor.mutator
class _Replacer(relax.PyExprMutator):
    def __init__(self, values: dict[relax.Var, GenericConst]):
        super().__init__()
        self.values = values
        self.bound: relax.Var | None = None

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.bound = binding.var
        super().visit_var_binding_(binding)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        return self.values[self.bound] if self.bound in self.values else super().visit_call_(call)
