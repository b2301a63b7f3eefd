# SPDX-License-Identifier: Apache-2.0
"""What passes that rewrite calls share."""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax


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
