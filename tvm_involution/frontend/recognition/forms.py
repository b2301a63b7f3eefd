# SPDX-License-Identifier: Apache-2.0
"""What every node of a graph is made of, as far as recognition looks: elements of one tensor, or products of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from .operators import ADDITIONS, MOVEMENTS, PICKS, PRODUCTS, SCALINGS, SUMS

# torch.fx types a node's arguments as a union of everything
Node: TypeAlias = Any
# nodes that everything passes on its way from the first to the last
Path: TypeAlias = tuple[Node, ...]


@dataclass(frozen=True)
class Fixed:
    """No input matters: constants, weights and what is made of them."""


@dataclass(frozen=True)
class Moved:
    """Elements of `path[0]`, moved, repeated, left out, times a number."""

    path: Path


@dataclass(frozen=True)
class Product:
    """Sums of products of an element of `paths[0][0]` with one of `paths[1][0]`."""

    paths: tuple[Path, Path]
    path: Path
    """from what multiplied or added last: where it is itself a factor, as x * sigmoid(x) of windows may be"""


Form: TypeAlias = Fixed | Moved | Product


def forms_of(graph: fx.Graph, fixed: set[Node]) -> dict[Node, Form]:
    """Return the form of every node of `graph`; `fixed` are the placeholders of weights and constants."""
    forms: dict[Node, Form] = {}
    for node in graph.nodes:
        if node.op == "get_attr" or node in fixed:
            forms[node] = Fixed()
        elif node.op == "call_function":
            if not node.all_input_nodes or all(forms[source] == Fixed() for source in node.all_input_nodes):
                forms[node] = Fixed()
            else:
                forms[node] = _form(node, forms) or Moved((node,))
        elif node.op == "placeholder":
            forms[node] = Moved((node,))
    return forms


def has_sizes(node: Node) -> bool:
    """Return whether `node` makes a tensor whose sizes depend on no values."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)


def shape_of(node: Node) -> tuple[int, ...]:
    """Return the shape of the tensor that `node` makes, () where it makes none."""
    value = node.meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()


def _form(node: Node, forms: dict[Node, Form]) -> Form | None:
    """Return the form of a call that has inputs, None where it begins a new one."""
    if any(not _is_floating(part) for part in (node, *node.all_input_nodes) if forms.get(part) != Fixed()):
        return None
    operands = [argument for argument in node.args if isinstance(argument, fx.Node)]
    sources = [forms[operand] for operand in operands]
    moving = [form for form in map(forms.__getitem__, node.all_input_nodes) if form != Fixed()]
    if node.target in SCALINGS and (len(operands) == 1 or (len(moving) == 1 and _is_number(operands[1]))):
        return _joined(moving, node)
    if node.target in ADDITIONS and len(operands) == 1 and node.args[1] == 0:  # where Python's `sum` begins
        return _joined(moving, node)
    if node.target in PRODUCTS and len(operands) == 2 and Fixed() not in sources:
        return Product((sources[0].path, sources[1].path), (node,))  # type: ignore[union-attr]
    if node.target in PICKS:
        return _joined(moving, node) if isinstance(sources[0], (Moved, Product)) and len(moving) == 1 else None
    if node.target in MOVEMENTS or node.meta.get("one_hot"):
        return _joined(moving, node)
    sums = node.target in SUMS and isinstance(moving[0], Product)
    adds = node.target in ADDITIONS and len(operands) == 2 and all(isinstance(form, Product) for form in sources)
    joined = _joined(moving, node) if sums or adds else None
    return Product(joined.paths, (node,)) if isinstance(joined, Product) else None


def _is_floating(node: Node) -> bool:
    value = node.meta.get("val")
    tensors = value if isinstance(value, (list, tuple)) else [value]
    return all(isinstance(tensor, torch.Tensor) and tensor.is_floating_point() for tensor in tensors)


def _is_number(node: Node) -> bool:
    return node.meta["val"].numel() == 1


def _joined(forms: list[Form], node: Node) -> Form | None:
    """Return what an operator that adds nothing of its own makes of `forms`."""
    joined = forms[0]
    for form in forms[1:]:
        merged = _merged(joined, form)
        if merged is None:
            return None
        joined = merged
    return _end(joined, node)


def _merged(a: Form, b: Form) -> Form | None:
    if isinstance(a, Moved) and isinstance(b, Moved):
        path = _common(a.path, b.path)
        return Moved(path) if path else None
    if isinstance(a, Product) and isinstance(b, Product):
        straight = (_common(a.paths[0], b.paths[0]), _common(a.paths[1], b.paths[1]))
        crossed = (_common(a.paths[0], b.paths[1]), _common(a.paths[1], b.paths[0]))
        best = max(straight, crossed, key=lambda pair: min(len(pair[0]), len(pair[1])))
        return Product(best, _common(a.path, b.path)) if all(best) else None
    return None


def _end(form: Form, node: Node) -> Form:
    if isinstance(form, Product):
        return Product(form.paths, (*form.path, node))
    return Moved((*form.path, node)) if isinstance(form, Moved) else form


def _common(a: Path, b: Path) -> Path:
    length = 0
    for one, other in zip(a, b, strict=False):
        if one is not other:
            break
        length += 1
    return a[:length]
