# SPDX-License-Identifier: Apache-2.0
"""Programs that were exported in training mode, taken as for inference: what `module.eval()` would have changed."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind

from .retype import copied, graphs

_ATEN = torch.ops.aten
_FUNCTIONAL = _ATEN._native_batch_norm_legit_functional.default
"""returns new running statistics, and takes the old at the same positions, 3 and 4"""
_DROPOUT = _ATEN.native_dropout.default
"""returns its input and a mask"""
# operators that do something else in training: the argument that says so, and its value for inference
_ARGUMENTS: dict[Any, tuple[str, bool | float]] = {
    _ATEN.batch_norm.default: ("training", False),
    _FUNCTIONAL: ("training", False),
    _ATEN.instance_norm.default: ("use_input_stats", False),
    _ATEN.dropout.default: ("train", False),
    _ATEN.dropout_.default: ("train", False),
    _ATEN.feature_dropout.default: ("train", False),
    _ATEN.feature_dropout_.default: ("train", False),
    _ATEN.alpha_dropout.default: ("train", False),
    _ATEN.feature_alpha_dropout.default: ("train", False),
    _DROPOUT: ("train", False),
    _ATEN.rrelu.default: ("training", False),
    _ATEN.scaled_dot_product_attention.default: ("dropout_p", 0.0),
}


def for_inference(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return `program` with batch norms by their running statistics and without dropout; itself where it is so."""
    if not any(_differs(node) for module in graphs(program) for node in module.graph.nodes):
        return program
    program = copied(program)
    for module in graphs(program):
        for node in module.graph.nodes:
            if _differs(node):
                name, value = _ARGUMENTS[node.target]
                position = _position(node, name)
                if position < len(node.args):
                    node.update_arg(position, value)
                else:
                    node.update_kwarg(name, value)
                if node.target is _FUNCTIONAL:
                    _keep_statistics(program, node)
                elif node.target is _DROPOUT:
                    _pass(node)
        module.recompile()
    return program


def _keep_statistics(program: torch.export.ExportedProgram, norm: fx.Node) -> None:
    """Take the new running statistics of a norm out of what the program writes back."""
    new = {user.name for user in norm.users if user.target is operator.getitem and user.args[1] in (3, 4)}
    returned = next(node for node in program.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    kept = [
        (value, spec)
        for value, spec in zip(returned.args[0], specs, strict=True)
        if spec.kind != OutputKind.BUFFER_MUTATION or spec.arg.name not in new
    ]
    returned.args = (tuple(value for value, _ in kept),)
    specs[:] = [spec for _, spec in kept]


def _pass(dropout: fx.Node) -> None:
    """Take a dropout out, whose mask nobody looks at without gradients."""
    for part in list(dropout.users):
        if part.args[1] == 0:
            part.replace_all_uses_with(dropout.args[0])  # type: ignore[arg-type]
        part.graph.erase_node(part)
    dropout.graph.erase_node(dropout)


def _differs(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _ARGUMENTS:
        return False
    name, inference = _ARGUMENTS[node.target]
    if _argument(node, name) == inference:
        return False
    # norms without running statistics use those of the batch in inference, too
    return "norm" not in str(node.target) or isinstance(_argument(node, "running_mean"), fx.Node)


def _position(node: fx.Node, name: str) -> int:
    assert isinstance(node.target, torch._ops.OpOverload)
    return [argument.name for argument in node.target._schema.arguments].index(name)


def _argument(node: fx.Node, name: str) -> Any:
    assert isinstance(node.target, torch._ops.OpOverload)
    position = _position(node, name)
    if position < len(node.args):
        return node.args[position]
    return node.kwargs.get(name, node.target._schema.arguments[position].default_value)
