# SPDX-License-Identifier: Apache-2.0
"""From PyTorch to Relax, by way of `torch.export`, with involutions kept whole."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

from ..errors import UserError
from .decompositions import decompositions
from .translator import Translator
from .unfold_pattern import rewrite_unfold_involutions

# file, line and code of each frame of a node's stack_trace
_FRAME = re.compile(r'File "(.*?)", line (\d+), in .*\n\s*(.*)')


def export_module(
    module: torch.nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None
) -> torch.export.ExportedProgram:
    """Trace `module` (in evaluation mode) with `torch.export` for the shapes and dtypes of its arguments.

    Args:
        inputs: positional arguments: tensors, or tuples, lists and dictionaries of them.
        keywords: arguments by name, likewise.

    Raises:
        UserError: `torch.export` cannot trace the module, with its own reason.
    """
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), tuple(inputs), dict(keywords or {}))
    except Exception as error:  # torch.export raises whatever the traced code raises
        reason = str(error).strip().splitlines()
        shapes = [list(x.shape) for x in tree_leaves((inputs, keywords or {}))]
        raise UserError(
            f"torch.export cannot trace {type(module).__name__} for inputs {shapes}: "
            f"{reason[0] if reason else type(error).__name__}; "
            "the module must run on these shapes without data-dependent Python"
        ) from error


def import_exported_program(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """Return the Relax module of `program`: one function `main`, weights bound as constants.

    Involutions, as `torch.ops.tvm_involution.involution2d` or in the official naive form with `nn.Unfold`
    (cls/mmcls/models/utils/involution_naive.py), become `tvm_involution.involution2d`.

    Raises:
        UserError: the program holds an operator that Relax cannot import, named with its source line.
    """
    program = rewrite_unfold_involutions(program)
    with warnings.catch_warnings():
        # torch warns of its own pytree registrations while it decomposes
        warnings.simplefilter("ignore")
        program = program.run_decompositions(decompositions())
    try:
        return Translator().translate(program)
    except Exception as error:  # converters raise whatever they trip over
        raise UserError(f"cannot import the network: {_first_line(error)}{_source_of(program, error)}") from error


def output_names(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Return a name for each output: `output`, `output_0`, ..., or the keys and positions that lead to it, `a_0`."""
    spec = program.call_spec.out_spec
    assert spec is not None
    paths, _ = tree_flatten_with_path(tree_unflatten(range(spec.num_leaves), spec))
    names = []
    for path, _ in paths:
        words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        names.append("_".join(words if words and not words[0].isdigit() else ["output", *words]))
    return tuple(names)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _source_of(program: torch.export.ExportedProgram, error: Exception) -> str:
    """Return the user's Python line of the operator that was being converted, or that the message of `error` names."""
    node = _converted_node(error) or next(
        (
            node
            for node in program.graph.nodes
            if node.op == "call_function" and getattr(node.target, "__name__", str(node.target)) in str(error)
        ),
        None,
    )
    if node is None:
        return ""
    own = f" in {node.target}" if getattr(node.target, "__name__", "") not in str(error) else ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    library = str(Path(torch.__file__).parent)
    users = [frame for frame in frames if not frame[0].startswith(library)] or frames
    return own + (" ({}:{}: {})".format(*users[-1]) if users else "")


def _converted_node(error: Exception) -> torch.fx.Node | None:
    """Return the node that the importer was at when it failed; it raises before the first where it lacks operators."""
    found, trace = None, error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            found = node
        trace = trace.tb_next
    return found
