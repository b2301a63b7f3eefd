# SPDX-License-Identifier: Apache-2.0
"""Sources of windows, brought to one form: the border is padded by an operator of its own, before windows are taken.

So that every window lies inside of a tensor, and what it reads can be found by looking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .forms import Node, shape_of
from .operators import CONVOLUTION, IM2COL, PAD

# a window that picks elements has few weights; larger ones are not looked at
_MOST_WEIGHTS = 1 << 20


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


def call(graph: fx.Graph, target: Any, args: tuple, like: Node, keywords: dict[str, Any] | None = None) -> Node:
    """Add a call at the point of insertion, with what is known of its result, and the source line of `like`."""
    node = graph.call_function(target, args, keywords or {})
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
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
