# SPDX-License-Identifier: Apache-2.0
"""What a program that was exported for one batch size would be for another: shapes alone, nothing is computed."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.utils._pytree import tree_map_only

from .batch_axes import BatchAxes, Trace, compare_batches, fixed
from .torch_log import no_torch_log

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default, torch.ops.aten._unsafe_view.default)


def other_batch(batch: int) -> int:
    """Return the batch size that one for `batch` is compared with."""
    return batch + 1


def rebatched_axes(program: torch.export.ExportedProgram, batch: int) -> BatchAxes:
    """Return where the batch is in a program that was exported for `batch`; nowhere if it works for no other."""
    try:
        with no_torch_log():
            other = _rebatch(program, batch, other_batch(batch))
    except Exception:  # operators raise whatever their checks of shapes raise
        return fixed(program)
    return compare_batches(program, batch, other, other_batch(batch))


def _rebatch(program: torch.export.ExportedProgram, n: int, m: int) -> Trace:
    graph = copy.deepcopy(program.graph)
    for node, original in zip(graph.nodes, program.graph.nodes, strict=True):
        node.name = original.name  # a copy does not keep names that are Python's, such as `input`
    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes])
    assert mode is not None
    inputs = set(program.graph_signature.user_inputs)
    values: dict[fx.Node, Any] = {}
    with mode, torch.no_grad():
        for node in graph.nodes:
            if node.op == "output":
                continue
            before = node.meta["val"]
            if node.op == "call_function":
                arguments = list(tree_map_only(fx.Node, values.__getitem__, node.args))
                if node.target in _VIEWS:
                    sizes = [int(d) for d in before.shape]
                    arguments[1] = resized_view(_before(node), arguments[0].shape, sizes, n, m)
                elif node.target is torch.ops.aten.expand.default:
                    arguments[1] = [-1 if d == e else d for d, e in zip(*_aligned(node), strict=True)]
                keywords = tree_map_only(fx.Node, values.__getitem__, dict(node.kwargs))
                values[node] = node.target(*arguments, **keywords)
            elif node.name in inputs and before.dim() and len(before) == n:
                values[node] = torch.empty(m, *before.shape[1:], dtype=before.dtype)
            else:
                values[node] = before
            # the copy of the graph shares no dictionary with the program
            node.meta["shape"] = [int(d) for d in before.shape] if isinstance(before, torch.Tensor) else []
            node.meta["val"] = values[node]
    return Trace(graph, program.graph_signature, program.constants)


def resized_view(before: Sequence[int], source: Sequence[int], sizes: Sequence[int], n: int, m: int) -> list[int]:
    """Return the sizes of a view when its source is no longer `before` but `source`, since the batch is m, not n.

    The axis changes before which there are as many elements as before the source's.
    """
    resized = list(sizes)
    grown = next((axis for axis, (d, e) in enumerate(zip(before, source, strict=True)) if d != e), None)
    if grown is not None:
        ahead = math.prod(before[:grown])
        axis = next(a for a, d in enumerate(sizes) if math.prod(sizes[:a]) == ahead and d % n == 0)
        resized[axis] = sizes[axis] // n * m
    return resized


def _aligned(expand: fx.Node) -> tuple[list[int], list[int]]:
    """Return the sizes to expand to, and those of the source, with 0 for the dimensions that it lacks."""
    sizes, source = [int(d) for d in expand.meta["val"].shape], _before(expand)
    return sizes, [0] * (len(sizes) - len(source)) + source


def _before(node: fx.Node) -> list[int]:
    """Return the shape that the first argument of `node` had."""
    assert isinstance(node.args[0], fx.Node)
    return list(node.args[0].meta["shape"])
