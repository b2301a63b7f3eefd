# SPDX-License-Identifier: Apache-2.0
"""From PyTorch to Relax, by way of `torch.export`, with involutions kept whole."""

from __future__ import annotations

import re
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

from ..errors import UserError
from .decompositions import decompositions
from .translator import Refused, Translator
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
        shapes = [list(x.shape) for x in tree_leaves((inputs, keywords or {}))]
        reason = _first_line(error) + _raised_at(error)
        advice = "; use torch.where, or decide before compiling" if "data-dependent" in str(error) else ""
        raise UserError(
            f"torch.export cannot trace {type(module).__name__} for inputs {shapes}: {reason}{advice}"
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
        try:
            program = program.run_decompositions(decompositions())
        except Exception as error:  # decompositions are Python, too
            raise UserError(f"cannot import the network: torch cannot decompose it: {_first_line(error)}") from error
    try:
        return Translator(program).translate()
    except Refused as error:
        raise UserError(f"cannot import the network: {error}{_line_of(error.node)}") from error
    except Exception as error:  # TVM's importer, over what is no operator
        raise UserError(f"cannot import the network: {_first_line(error)}") from error


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
    """Return what an exception says, and its type where it is not the message that tells what went wrong."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    plain = isinstance(error, (RuntimeError, UserError))
    return lines[0] if plain else f"{type(error).__name__}: {lines[0]}"


def _raised_at(error: Exception) -> str:
    """Return the last line of the user's Python that an exception passed, in brackets."""
    standard = str(Path(traceback.__file__).parent)
    others = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(others)
        and (not frame.filename.startswith(standard) or "site-packages" in frame.filename)
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""


def _line_of(node: torch.fx.Node) -> str:
    """Return the user's Python line that called an operator, in brackets."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    library = str(Path(torch.__file__).parent)
    users = [frame for frame in frames if not frame[0].startswith(library)] or frames
    return " ({}:{}: {})".format(*users[-1]) if users else ""
