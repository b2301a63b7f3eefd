# SPDX-License-Identifier: Apache-2.0
"""A program in other types: its weights, what its nodes make, and the types that it names."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map

Types = Mapping[torch.dtype, torch.dtype]


def graphs(program: torch.export.ExportedProgram) -> Iterator[fx.GraphModule]:
    """Yield the program's graph and those inside it, as of branches and of regions under a context manager."""
    return (module for module in program.graph_module.modules() if isinstance(module, fx.GraphModule))


def copied(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a copy of `program` with the same weights."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own specifications of arguments
        copy_of_it = copy.deepcopy(program, {id(tensor): tensor for tensor in tensors})
    for module, original in zip(graphs(copy_of_it), graphs(program), strict=True):
        for node, before in zip(module.graph.nodes, original.graph.nodes, strict=True):
            node.name = before.name  # a copy does not keep names that are Python's, such as `input`
    return copy_of_it


def retyped(program: torch.export.ExportedProgram, types: Types) -> torch.export.ExportedProgram:
    """Return `program` with other types as `types` has them; `program` itself is left as it is."""
    program = copied(program)
    for tensors in (program.state_dict, program.constants):
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.nn.Parameter):
                weight = _converted(tensor.detach(), types)
                tensors[name] = torch.nn.Parameter(weight, tensor.requires_grad)
            else:
                tensors[name] = _converted(tensor, types)
    for module in graphs(program):
        for node in module.graph.nodes:
            node.args, node.kwargs = _named(node.args, types), _named(node.kwargs, types)
            if "val" in node.meta:
                node.meta["val"] = tree_map(lambda value: _converted(value, types), node.meta["val"])
        module.recompile()
    return program


def _converted(value: Any, types: Types) -> Any:
    return value.to(types.get(value.dtype, value.dtype)) if isinstance(value, torch.Tensor) else value


def _named(arguments: Any, types: Types) -> Any:
    return fx.node.map_aggregate(
        arguments, lambda value: types.get(value, value) if isinstance(value, torch.dtype) else value
    )
