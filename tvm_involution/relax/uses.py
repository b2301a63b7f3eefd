# SPDX-License-Identifier: Apache-2.0
"""How often each value of a function is used: what is used twice must not be folded into one of its users."""

from __future__ import annotations

from tvm import relax


def count_uses(func: relax.Function) -> dict[relax.Expr, int]:
    """Return how often the value of each binding of `func` is used."""
    values = {}
    counts: dict[relax.Expr, int] = {}
    for block in func.body.blocks:
        for binding in block.bindings:
            values[binding.var] = binding.value

    def visit(expr):
        if isinstance(expr, relax.Var) and expr in values:
            value = values[expr]
            counts[value] = counts.get(value, 0) + 1

    for block in func.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
    visit(func.body.body)
    return counts
