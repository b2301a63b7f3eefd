# SPDX-License-Identifier: Apache-2.0
"""Sources of windows, brought to one form: the border is padded by an operator of its own, before windows are taken.

So that every window lies inside of a tensor, and what it reads can be found by looking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .forms import Node, has_sizes, shape_of
from .operators import CONVOLUTION, IM2COL, PAD

_ATEN = torch.ops.aten
# a tensor that is rolled in fewer ways makes no windows
_FEWEST_WAYS = 3
# a window that picks elements has few weights; larger ones are not looked at
_MOST_WEIGHTS = 1 << 20


def add_no_zeros(graph: fx.Graph) -> None:
    """Take out zeros that products are added to, one after another, as `out = torch.zeros_like(x)` begins."""
    for node in list(graph.nodes):
        if node.target is not _ATEN.add.Tensor or node.kwargs or not has_sizes(node):
            continue
        for zeros, other in (node.args, node.args[::-1]):
            if _is_zero(zeros) and isinstance(other, fx.Node) and _same_kind(node, other):
                node.replace_all_uses_with(other)
                break


def _is_zero(node: Any) -> bool:
    filled = isinstance(node, fx.Node) and node.target in (_ATEN.full.default, _ATEN.full_like.default)
    return filled and node.args[1] == 0


def _same_kind(node: Node, other: Node) -> bool:
    return shape_of(node) == shape_of(other) and node.meta["val"].dtype == other.meta["val"].dtype


def pad_before(graph: fx.Graph, value_of: Callable[[Node], torch.Tensor | None]) -> None:
    """Take the padding out of unfolds and of convolutions that pick elements, which are marked `one_hot`.

    Args:
        value_of: the values of a weight, None of what is none.
    """
    for node in list(graph.nodes):
        if node.target is IM2COL:
            x, size, dilation, padding, stride = node.args
            if any(padding):
                node.args = (_padded(graph, node, x, padding), size, dilation, [0] * len(padding), stride)
        elif node.target is CONVOLUTION and _picks(node, value_of):
            x, weight, bias, stride, padding, dilation, *rest = node.args
            node.meta["one_hot"] = True
            if any(padding):
                node.args = (
                    *(_padded(graph, node, x, padding), weight, bias, stride, [0] * len(padding), dilation),
                    *rest,
                )


def wrap_before(graph: fx.Graph, value_of: Callable[[Node], torch.Tensor | None]) -> None:
    """Make windows of rolled tensors: a tensor that is rolled in several ways is padded with its other side, once.

    What is rolled so is then a slice of that, which lies inside of it. Where what comes from the other side is
    multiplied by zeros, it is padded with these.
    """
    sources: dict[Node, Node] = {}
    shifts: dict[Node, dict[int, int]] = {}
    for node in graph.nodes:
        if (own := _shifts(node, value_of)) is not None:
            before = shifts.get(node.args[0], {})
            sources[node] = sources.get(node.args[0], node.args[0])
            shifts[node] = {axis: before.get(axis, 0) + own.get(axis, 0) for axis in before | own}
    for source in dict.fromkeys(sources.values()):
        rolls = {node: shifts[node] for node, origin in sources.items() if origin is source}
        ends = {node: found for node, found in rolls.items() if any(user not in rolls for user in node.users)}
        masked = {user: ends[node] for node in ends for user in node.users if _masks(user, node, ends[node], value_of)}
        if len(masked) == sum(len(node.users) for node in ends):
            _wrap(graph, source, masked, zeros=True)
        else:
            _wrap(graph, source, rolls)


def _masks(
    product: Node, rolled: Node, shifts: dict[int, int], value_of: Callable[[Node], torch.Tensor | None]
) -> bool:
    """Return whether a call multiplies by 0 what was rolled around the border, and by 1 all else."""
    if product.target is not _ATEN.mul.Tensor or not has_sizes(product) or shape_of(product) != shape_of(rolled):
        return False
    mask = product.args[1] if product.args[0] is rolled else product.args[0]
    values = _known(mask, value_of) if isinstance(mask, fx.Node) and mask is not rolled else None
    if values is None:
        return False
    there = torch.ones(shape_of(rolled), dtype=torch.bool)
    for axis, shift in shifts.items():
        around = slice(0, shift) if shift >= 0 else slice(shift, None)
        there.transpose(0, axis)[around] = False
    return torch.equal(values.expand(there.shape).to(torch.float64), there.to(torch.float64))


def _wrap(graph: fx.Graph, source: Node, rolls: dict[Node, dict[int, int]], zeros: bool = False) -> None:
    sizes = shape_of(source)
    axes = sorted({axis for shifts in rolls.values() for axis in shifts})
    most = {axis: max(abs(shifts.get(axis, 0)) for shifts in rolls.values()) for axis in axes}
    ways = {tuple(shifts.get(axis, 0) for axis in axes) for shifts in rolls.values()}
    if len(ways) < _FEWEST_WAYS or any(2 * most[axis] >= sizes[axis] for axis in axes):
        return
    first = next(iter(rolls))
    wrapped = source
    with graph.inserting_before(first):
        if zeros:
            widths = [width for axis in range(len(sizes) - 1, axes[0] - 1, -1) for width in (most.get(axis, 0),) * 2]
            wrapped = call(graph, PAD, (source, widths, 0.0), first)
        for axis in () if zeros else axes:
            size, width = sizes[axis], most[axis]
            sides = [
                call(graph, _ATEN.slice.Tensor, (wrapped, axis, start, stop), first)
                for start, stop in ((size - width, size), (0, width))
            ]
            wrapped = call(graph, _ATEN.cat.default, ([sides[0], wrapped, sides[1]], axis), first)
    for node, shifts in rolls.items():
        moved = wrapped
        with graph.inserting_before(node):
            for axis in axes:
                start = most[axis] - shifts.get(axis, 0)
                moved = call(graph, _ATEN.slice.Tensor, (moved, axis, start, start + sizes[axis]), node)
        node.replace_all_uses_with(moved)


def _shifts(node: Node, value_of: Callable[[Node], torch.Tensor | None]) -> dict[int, int] | None:
    """Return how far a roll goes along which axes, also one that is written as a selection; None of another call."""
    if node.target not in (_ATEN.roll.default, _ATEN.index_select.default):
        return None
    if not (has_sizes(node) and has_sizes(node.args[0])):
        return None  # as many as some values say: those of repeat_interleave
    rank = len(shape_of(node))
    if not rank:
        return None
    if node.target is _ATEN.roll.default and len(node.args) > 2 and node.args[2]:
        shifts = dict.fromkeys((axis % rank for axis in node.args[2]), 0)
        for axis, shift in zip(node.args[2], node.args[1], strict=True):
            shifts[axis % rank] += shift
    elif node.target is _ATEN.index_select.default:
        index = _known(node.args[2], value_of)
        size = shape_of(node.args[0])[node.args[1]]
        if index is None or len(index) != size or not bool(((index - index[0]) % size == torch.arange(size)).all()):
            return None
        shifts = {node.args[1] % rank: -int(index[0])}
    else:
        return None
    # the shorter way round
    return {axis: (shift + (n := shape_of(node)[axis]) // 2) % n - n // 2 for axis, shift in shifts.items()}


def _known(node: Node, value_of: Callable[[Node], torch.Tensor | None]) -> torch.Tensor | None:
    """Return the whole numbers that `node` holds, None where they depend on an input."""
    if node.op == "placeholder":
        return value_of(node)
    if node.op == "get_attr":
        return getattr(node.graph.owning_module, node.target)
    values = {source: _known(source, value_of) for source in node.all_input_nodes}
    if node.op != "call_function" or any(value is None for value in values.values()):
        return None
    return node.target(*fx.map_arg(node.args, values.__getitem__), **fx.map_arg(node.kwargs, values.__getitem__))


def call(graph: fx.Graph, target: Any, args: tuple, like: Node, keywords: dict[str, Any] | None = None) -> Node:
    """Add a call at the point of insertion, with what is known of its result, and the source line of `like`."""
    node = graph.call_function(target, args, keywords or {})
    values = fx.map_arg(args, lambda arg: arg.meta["val"])
    node.meta["val"] = target(*values, **(keywords or {}))
    for key in ("stack_trace", "nn_module_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    return node


def _padded(graph: fx.Graph, node: Node, x: Node, padding: Any) -> Node:
    widths = [width for side in reversed(padding) for width in (side, side)]
    with graph.inserting_before(node):
        return call(graph, PAD, (x, widths, 0.0), node)


def _picks(node: Node, value_of: Callable[[Node], torch.Tensor | None]) -> bool:
    """Return whether each channel that comes out of a convolution is one that goes in, perhaps shifted."""
    weight, bias, transposed = node.args[1], node.args[2], node.args[6]
    shape = shape_of(weight)
    if (
        bias is not None
        or transposed
        or all(size == 1 for size in shape[2:])
        or weight.meta["val"].numel() > _MOST_WEIGHTS
    ):
        return False
    values = value_of(weight)
    if values is None:
        return False
    return bool(((values != 0).flatten(1).sum(1) == 1).all())
