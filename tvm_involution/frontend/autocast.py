# SPDX-License-Identifier: Apache-2.0
"""Programs with regions under `torch.autocast`, or exported under it.

Autocast rounds the operands of some operators to a half type. What computes in a half type is said for a whole library
(`dtype`), by passes that know which sums and functions to keep in float32; so the rounding is left out here, and the
program is one in the type of its weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from .retype import graphs, retyped

_HALF = (torch.float16, torch.bfloat16)
_REGION = torch.ops.higher_order.wrap_with_autocast
_ENABLED = 2
"""position among the arguments of a region"""


def no_autocast() -> torch.autocast:
    """Return a context, or a decorator, that keeps autocast of the caller's out of what torch computes and traces."""
    return torch.autocast("cpu", enabled=False)


def without_autocast(
    program: torch.export.ExportedProgram, tell: Callable[[str], None] = lambda _: None
) -> torch.export.ExportedProgram:
    """Return `program` without what autocast rounds in it; `program` itself is left as it is.

    Args:
        tell: told, in one line, that something is left out.
    """
    nodes = [node for module in graphs(program) for node in module.graph.nodes if node.op == "call_function"]
    rounded = {dtype for node in nodes for dtype in _dtypes(node.meta.get("val")) if dtype in _HALF}
    if not rounded or not any(_is_region(node) or _is_rounded(node) for node in nodes):
        return program
    program = retyped(program, dict.fromkeys(_HALF, torch.float32))
    for module in graphs(program):
        for node in module.graph.nodes:
            if _is_region(node):
                node.update_arg(_ENABLED, False)
        module.recompile()
    names = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in rounded))
    tell(
        f"the network uses autocast; what that rounds to {names} is computed as the rest is, and --dtype {names} "
        "computes all so"
    )
    return program


def _is_region(node: fx.Node) -> bool:
    return node.target is _REGION and bool(node.args[_ENABLED])


def _is_rounded(node: fx.Node) -> bool:
    """Return whether a half type comes of an operator that is given none and names none: autocast was on."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    given = [dtype for source in node.all_input_nodes for dtype in _dtypes(source.meta.get("val"))]
    named = [value for value in tree_leaves((node.args, node.kwargs)) if isinstance(value, torch.dtype)]
    made = _dtypes(node.meta.get("val"))
    return any(dtype in _HALF for dtype in made) and not any(dtype in _HALF for dtype in (*given, *named))


def _dtypes(value: object) -> list[torch.dtype]:
    return [leaf.dtype for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
