# SPDX-License-Identifier: Apache-2.0
"""From PyTorch to Relax, by way of `torch.export`, with involutions kept whole."""

from __future__ import annotations

import itertools
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import tvm
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten

from ..errors import UserError
from .autocast import no_autocast, without_autocast
from .decompositions import decompositions
from .evaluation_mode import evaluation_mode
from .half_types import half_type, in_wider_types
from .recognition import recognise
from .sizes import check_sizes
from .source import source_line
from .torch_log import no_graph_on_failure, no_torch_log
from .translator import Refused, Translator

_RETURNED = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)


def export_module(
    module: torch.nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any] | None = None
) -> torch.export.ExportedProgram:
    """Trace `module` in evaluation mode with `torch.export` for the shapes and dtypes of its arguments.

    The module itself is left as it was.

    Args:
        inputs: positional arguments: tensors, or tuples, lists and dictionaries of them.
        keywords: arguments by name, likewise.

    Raises:
        UserError: `torch.export` cannot trace the module, with its own reason.
    """
    try:
        with torch.no_grad(), no_autocast(), no_torch_log(), no_graph_on_failure(), evaluation_mode(module):
            return torch.export.export(module, tuple(inputs), dict(keywords or {}))
    except Exception as error:  # torch.export raises whatever the traced code raises
        shapes = [list(x.shape) for x in tree_leaves((inputs, keywords or {}))]
        reason = _first_line(error) + _raised_at(error)
        advice = "; use torch.where, or decide before compiling" if "data-dependent" in str(error) else ""
        raise UserError(
            f"torch.export cannot trace {type(module).__name__} for inputs {shapes}: {reason}{advice}"
        ) from error


def import_exported_program(
    program: torch.export.ExportedProgram, tell: Callable[[str], None] = lambda _: None
) -> tvm.IRModule:
    """Return the Relax module of `program`: one function `main`, weights bound as constants.

    A program in a half type comes in float32, and what is float32 in it in float64, for `ConvertDtype` to take back.

    Involutions, as `torch.ops.tvm_involution.involution2d` or however they are written (`recognition`), become
    `tvm_involution.involution2d`.

    Args:
        tell: told, in one line each, what is no involution though it multiplies windows.

    Raises:
        UserError: the program holds an operator that Relax cannot import, named with its source line, or a tensor that
            is too large; or its outputs depend on a buffer that it changes; or it returns numbers that are no tensors.
    """
    program, _ = core_program(program, tell)
    try:
        return translate(program)
    except Refused as error:
        raise UserError(f"cannot import the network: {error}{source_line(error.nodes[0])}") from error


def core_program(
    program: torch.export.ExportedProgram, tell: Callable[[str], None]
) -> tuple[torch.export.ExportedProgram, set[torch.fx.Node]]:
    """Return `program` of core operators, involutions recognised, and its nodes before these were.

    Args:
        tell: as `import_exported_program` has it.

    Raises:
        UserError: torch cannot take the program apart.
    """
    program = without_autocast(program, tell)
    program = in_wider_types(program) if half_type(program) else program
    with warnings.catch_warnings(), no_autocast():
        # torch warns of its own pytree registrations while it decomposes
        warnings.simplefilter("ignore")
        try:
            program = program.run_decompositions(decompositions())
        except Exception as error:  # decompositions are Python, too
            raise UserError(f"cannot import the network: torch cannot decompose it: {_first_line(error)}") from error
    written = set(program.graph.nodes)
    for line in recognise(program):
        tell(line)
    return program, written


def translate(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """Return the Relax module of what `core_program` returned; outputs of None are taken out of it.

    Raises:
        Refused: operators cannot be imported.
        UserError: anything else, as `import_exported_program` has it.
    """
    check_sizes(program)
    _check_state(program)
    _keep_tensors(program)
    try:
        return Translator(program).translate()
    except Refused:
        raise
    except Exception as error:  # TVM's importer, over what is no operator
        raise UserError(f"cannot import the network: {_first_line(error)}") from error


def output_names(program: torch.export.ExportedProgram) -> tuple[str, ...]:
    """Return a name for each output: `output`, `output_0`, ..., or the keys and positions that lead to it, `a_0`.

    Where several would have one name (`{"a": [x], "a_0": y}`), the later are numbered: `a_0`, `a_0_2`. None has none.
    """
    spec = program.call_spec.out_spec
    assert spec is not None
    paths, _ = tree_flatten_with_path(tree_unflatten(range(spec.num_leaves), spec))
    wanted = []
    for (path, _), value in zip(paths, _user_outputs(program), strict=True):
        if value is None:
            continue
        words = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in path]
        wanted.append("_".join(words if words and words[0] and not words[0].isdigit() else ["output", *words]))
    names: list[str] = []
    for name in wanted:
        numbered = (f"{name}_{number}" for number in itertools.count(2) if f"{name}_{number}" not in wanted)
        names.append(name if name not in names else next(free for free in numbered if free not in names))
    return tuple(names)


def _user_outputs(program: torch.export.ExportedProgram) -> list[Any]:
    """Return the outputs as the graph has them: nodes, or None and numbers where the network returns these."""
    (returned,) = next(node for node in program.graph.nodes if node.op == "output").args
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [value for value, kind in zip(returned, kinds, strict=True) if kind in _RETURNED]


def _check_state(program: torch.export.ExportedProgram) -> None:
    """Raise `UserError` where a call's outputs depend on what an earlier call wrote into a buffer."""
    signature = program.graph_signature
    changed = {target: name for name, target in signature.buffers_to_mutate.items()}
    by_name = {node.name: node for node in program.graph.nodes}
    placeholders = {target: name for name, target in signature.inputs_to_buffers.items() if target in changed}
    outputs = [value for value in _user_outputs(program) if isinstance(value, torch.fx.Node)]
    seen: set[torch.fx.Node] = set()
    while outputs:
        node = outputs.pop()
        if node not in seen:
            seen.add(node)
            outputs += node.all_input_nodes
    for target, name in placeholders.items():
        if by_name[name] in seen:
            raise UserError(
                f"the network changes its buffer {target!r}{source_line(by_name[changed[target]])} and its outputs "
                "depend on what it held before; a library keeps no state: pass it as an input and return it"
            )


def _keep_tensors(program: torch.export.ExportedProgram) -> None:
    """Leave out None among the outputs of `program`, which is changed; other values that are no tensors are refused."""
    node = next(node for node in program.graph.nodes if node.op == "output")
    specs = program.graph_signature.output_specs
    for value, spec in zip(node.args[0], specs, strict=True):
        if value is not None and not isinstance(value, torch.fx.Node):
            raise UserError(
                f"the network returns {value!r}, which is no tensor; return tensors, such as torch.tensor({value!r})"
            )
        if value is not None and not isinstance(value.meta.get("val"), torch.Tensor):
            raise UserError(f"the network returns {spec.arg.name}, which is no tensor; return tensors alone")
    kept = [(value, spec) for value, spec in zip(node.args[0], specs, strict=True) if value is not None]
    if not any(spec.kind in _RETURNED for _, spec in kept):
        raise UserError("the network returns no tensor; it must return at least one")
    if len(kept) < len(specs):
        node.args = (tuple(value for value, _ in kept),)
        specs[:] = [spec for _, spec in kept]
        program.graph_module.recompile()


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
