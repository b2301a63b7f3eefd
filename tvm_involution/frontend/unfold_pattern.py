# SPDX-License-Identifier: Apache-2.0
"""Recognise involution written with `nn.Unfold` and make it the operator.

The official naive form (cls/mmcls/models/utils/involution_naive.py of d-li14/involution) is

    weight = weight.view(N, G, K*K, OH, OW).unsqueeze(2)
    out = unfold(x).view(N, G, C/G, K*K, OH, OW)
    out = (weight * out).sum(dim=3).view(N, C, OH, OW)

It is matched on the exported graph, before decomposition turns the unfold into index arithmetic.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx

from ..nn import ops as _ops  # noqa: F401  (defines torch.ops.tvm_involution)

# torch.fx types a node's arguments as a union of everything; the pattern below checks what it meets
Node: TypeAlias = Any

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten.reshape.default)


@dataclass(frozen=True)
class _Match:
    x: Node
    kernel: Node
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


def rewrite_unfold_involutions(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return `program` with every naive involution replaced by `torch.ops.tvm_involution.involution2d`.

    `program` itself is left as it is.
    """
    if not any(node.target is torch.ops.aten.im2col.default for node in program.graph.nodes):
        return program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about its own trees, which it copies
        program = copy.deepcopy(program)
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        match = _match(node)
        if match is not None:
            _replace(graph, node, match)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _match(total: Node) -> _Match | None:
    if total.target is not torch.ops.aten.sum.dim_IntList or [d % 6 for d in total.args[1]] != [3]:
        return None
    if len(total.args) > 2 and total.args[2]:  # keepdim
        return None
    product = total.args[0]
    if product.target is not torch.ops.aten.mul.Tensor or _shape(product) is None:
        return None
    for kernel_side, window_side in (product.args, product.args[::-1]):
        match = _match_product(kernel_side, window_side)
        if match is not None:
            return match
    return None


def _match_product(kernel_side: Node, window_side: Node) -> _Match | None:
    if not isinstance(kernel_side, fx.Node) or not isinstance(window_side, fx.Node):
        return None
    if kernel_side.target is not torch.ops.aten.unsqueeze.default or kernel_side.args[1] not in (2, -4):
        return None
    unfold = _behind_views(window_side)
    if unfold.target is not torch.ops.aten.im2col.default:
        return None
    x, kernel_size, dilation, padding, stride = unfold.args
    kernel_shape, windows = _shape(kernel_side.args[0]), _shape(window_side)
    if kernel_shape is None or windows is None or len(kernel_shape) != 5 or len(windows) != 6:
        return None
    n, groups, taps, oh, ow = kernel_shape
    channels = _shape(x)[1]
    if taps != kernel_size[0] * kernel_size[1]:
        return None
    if channels % groups or windows != (n, groups, channels // groups, taps, oh, ow):
        return None
    return _Match(x, kernel_side.args[0], groups, tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation))


def _replace(graph: fx.Graph, total: Node, match: _Match) -> None:
    n, _, _, oh, ow = _shape(match.kernel)
    kernel_shape = [n, match.groups, *match.kernel_size, oh, ow]
    with graph.inserting_before(total):
        kernel = _call(graph, torch.ops.aten.view.default, (match.kernel, kernel_shape), total)
        geometry = tuple(list(pair) for pair in (match.stride, match.padding, match.dilation))
        out = _call(graph, torch.ops.tvm_involution.involution2d.default, (match.x, kernel, *geometry), total)
    whole = tuple(out.meta["val"].shape)
    for user in list(total.users):
        if user.target in _VIEWS and _shape(user) == whole:
            user.replace_all_uses_with(out)
    if any(user.target not in _VIEWS or _shape(user) != whole for user in total.users):
        with graph.inserting_after(out):
            grouped = _call(graph, torch.ops.aten.view.default, (out, list(_shape(total))), total)
        total.replace_all_uses_with(grouped)


def _call(graph: fx.Graph, target: Any, args: tuple, like: Node) -> Node:
    node = graph.call_function(target, args)
    values = [arg.meta["val"] if isinstance(arg, fx.Node) else arg for arg in args]
    node.meta["val"] = target(*values)
    for key in ("stack_trace", "nn_module_stack"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    return node


def _behind_views(node: Node) -> Node:
    while node.target in _VIEWS:
        node = node.args[0]
    return node


def _shape(node: Node) -> Any:
    """Return the shape of the tensor that `node` makes, None where it makes none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
