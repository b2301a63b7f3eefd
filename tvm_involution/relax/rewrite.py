# SPDX-License-Identifier: Apache-2.0
"""How passes rewrite graphs: calls of some operators one by one (`rewrite_calls`), or whole functions.

Functions are for what TVM's patterns find, several operators at a time (`update_functions`), and for mutators that
change more than calls: types, bindings (`rewrite_functions`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeGuard

import tvm
from tvm import relax


class Graph:
    """The function that is rewritten, as far as it is: what a rewritten call is made of."""

    def __init__(self, mutator: relax.PyExprMutator):
        self.builder = mutator.builder_
        self._lookup = mutator.lookup_binding

    def emit(self, value: relax.Expr) -> relax.Var:
        """Bind `value` to a new variable."""
        return self.builder.emit(value)

    def bound(self, value: relax.Expr) -> relax.Expr | None:
        """Return what a variable is bound to; None for what is no variable, and for the function's parameters."""
        return self._lookup(value) if isinstance(value, relax.Var) else None


def is_call(value: relax.Expr | None, name: str) -> TypeGuard[relax.Call]:
    """Return whether `value` calls the operator `name`, as `relax.nn.conv2d`."""
    return isinstance(value, relax.Call) and getattr(value.op, "name", "") == name


RewriteCall = Callable[[relax.Call, Graph], relax.Expr]
"""Given a call whose arguments have been rewritten, and the graph, returns what takes its place: perhaps the call."""


def rewrite_calls(mod: tvm.IRModule, rewrites: Mapping[str, RewriteCall]) -> tvm.IRModule:
    """Return `mod` with the calls of operators rewritten, by their names, as `relax.nn.conv2d`."""
    return rewrite_functions(mod, _CallRewriter(mod, rewrites))


@relax.expr_functor.mutator
class _CallRewriter(relax.PyExprMutator):
    def __init__(self, mod: tvm.IRModule, rewrites: Mapping[str, RewriteCall]):
        super().__init__(mod)
        self.rewrites = rewrites
        self.graph = Graph(self)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        rewrite = self.rewrites.get(getattr(call.op, "name", ""))
        return call if rewrite is None else rewrite(call, self.graph)


def rewrite_functions(mod: tvm.IRModule, mutator: relax.PyExprMutator) -> tvm.IRModule:
    """Return `mod` with `mutator`, made for it, applied to every Relax function."""
    for name, func in mod.functions_items():
        if isinstance(func, relax.Function):
            mutator.builder_.update_func(name, mutator.visit_expr(func))
    return mutator.builder_.get()


def update_functions(
    mod: tvm.IRModule, rewrite: Callable[[relax.Function, relax.BlockBuilder], relax.Function]
) -> tvm.IRModule:
    """Return `mod` with every Relax function as `rewrite` returns it, whose tensor programs the builder takes."""
    builder = relax.BlockBuilder(mod)
    for name, func in mod.functions_items():
        if isinstance(func, relax.Function):
            builder.update_func(name, rewrite(func, builder))
    return builder.get()
