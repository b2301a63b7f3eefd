# SPDX-License-Identifier: Apache-2.0
"""Keep what is read at many places from being computed at each of them.

TVM's `FuseOps` takes slices and concatenations for as cheap as any step element by element, and makes one program of
all steps on the way. What eight shifted slices of a tensor are made into then computes that tensor eight times, and of
four such steps after each other the first eight to the power of four times; what reads a concatenation of 25 tensors
chooses among 25 for each element.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

import tvm
from tvm import relax

from ..rewrite import is_call, rewrite_functions

_OPAQUE = 8
"""the pattern of programs that `FuseOps` joins with nothing (TVM's OpPatternKind)"""
_MOST_SLICES = 3
_MOVEMENTS = ("reshape", "transpose", "pad", "expand_dims", "squeeze", "strided_slice", "dynamic_strided_slice")
_MOST_PARTS = 8


@tvm.transform.module_pass(opt_level=0, name="KeepWindowed")
class KeepWindowed:
    """Take out of fusion what is computed and sliced more than 3 times, and concatenations of more than 8 tensors."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Rewrite `mod`, whose operators are programs with their patterns."""
        kept = {call for _, func in mod.functions_items() if isinstance(func, relax.Function) for call in _kept(func)}
        return rewrite_functions(mod, _Keeper(mod, kept)) if kept else mod


@relax.expr_functor.mutator
class _Keeper(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, kept: set[relax.Call]):
        super().__init__(mod)
        self.mod, self.kept = mod, kept

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        kept = call in self.kept
        call = self.visit_expr_post_order(call)
        if not kept:
            return call
        program, *arguments = call.args
        alone = self.mod[program].with_attr("op_pattern", _OPAQUE)
        name = self.builder_.add_func(alone, f"{program.name_hint}_alone")
        return relax.Call(call.op, [name, *arguments], call.attrs, call.ty_args)


def _kept(func: relax.Function) -> Iterator[relax.Call]:
    bindings = [binding for block in func.body.blocks for binding in block.bindings]
    slices: Counter[relax.Var] = Counter()
    for binding in bindings:
        if _program(binding.value).startswith(("strided_slice", "dynamic_strided_slice")):
            slices[binding.value.args[1][0]] += 1
    values = {binding.var: binding.value for binding in bindings}
    for binding in bindings:
        name = _program(binding.value)
        joins = name.startswith("concatenate") and len(binding.value.args[1]) > _MOST_PARTS
        if joins or (slices[binding.var] > _MOST_SLICES and _is_computed(binding.value, values)):
            yield binding.value


def _is_computed(value: relax.Expr | None, values: Mapping[relax.Var, relax.Expr]) -> bool:
    """Return whether more than moving leads to `value` from what is in memory: that costs nothing where it is read."""
    while isinstance(value, relax.Call) and _program(value).startswith(_MOVEMENTS):
        value = values.get(value.args[1][0])
    return bool(_program(value))


def _program(value: relax.Expr | None) -> str:
    """Return the name of the tensor program that is called, "" of anything else."""
    return value.args[0].name_hint if is_call(value, "relax.call_tir") else ""
