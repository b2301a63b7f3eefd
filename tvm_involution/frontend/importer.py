# SPDX-License-Identifier: Apache-2.0
"""From PyTorch to Relax, by way of `torch.export`, with involutions kept whole."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import tvm
from torch.export.graph_signature import OutputKind
from torch.utils._pytree import tree_flatten_with_path, tree_leaves, tree_unflatten
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from ..errors import UserError
from ..relax.operators import involution as operator
from . import conversions
from .half_types import half_type, in_wider_types
from .sizes import check_sizes
from .source import source_line
from .unfold_pattern import rewrite_unfold_involutions

_RETURNED = (OutputKind.USER_OUTPUT, OutputKind.LOSS_OUTPUT)
_KEPT = (
    torch.ops.aten.batch_norm.default,
    torch.ops.aten.upsample_nearest2d.vec,
    torch.ops.aten.upsample_bilinear2d.vec,
    torch.ops.aten.adaptive_avg_pool2d.default,
)


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
        with torch.no_grad(), _evaluation(module):
            return torch.export.export(module, tuple(inputs), dict(keywords or {}))
    except Exception as error:  # torch.export raises whatever the traced code raises
        reason = str(error).strip().splitlines()
        shapes = [list(x.shape) for x in tree_leaves((inputs, keywords or {}))]
        raise UserError(
            f"torch.export cannot trace {type(module).__name__} for inputs {shapes}: "
            f"{reason[0] if reason else type(error).__name__}; "
            "the module must run on these shapes without data-dependent Python"
        ) from error


@contextlib.contextmanager
def _evaluation(module: torch.nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def import_exported_program(program: torch.export.ExportedProgram) -> tvm.IRModule:
    """Return the Relax module of `program`: one function `main`, weights bound as constants.

    A program in a half type comes in float32, and what is float32 in it in float64, for `ConvertDtype` to take back.

    Involutions, as `torch.ops.tvm_involution.involution2d` or in the official naive form with `nn.Unfold`
    (cls/mmcls/models/utils/involution_naive.py), become `tvm_involution.involution2d`.

    Raises:
        UserError: the program holds an operator that Relax cannot import, named with its source line, or a tensor that
            is too large; or its outputs depend on a buffer that it changes; or it returns numbers that are no tensors.
    """
    program = rewrite_unfold_involutions(in_wider_types(program) if half_type(program) else program)
    with warnings.catch_warnings():
        # torch warns of its own pytree registrations while it decomposes
        warnings.simplefilter("ignore")
        program = program.run_decompositions(_decompositions())
    check_sizes(program)
    _check_state(program)
    _keep_tensors(program)
    try:
        return from_exported_program(
            program,
            run_ep_decomposition=False,
            unwrap_unit_return_tuple=True,
            custom_convert_map={
                "involution2d.default": _convert_involution2d,
                "nms.default": conversions.convert_nms,
                "roi_align.default": conversions.convert_roi_align,
                "paste_masks.default": conversions.convert_paste_masks,
                "amax.default": conversions.convert_amax,
                "softshrink.default": conversions.convert_softshrink,
                "squeeze.dim": conversions.convert_squeeze,
                "squeeze.dims": conversions.convert_squeeze,
                "sort.stable": conversions.convert_sort_stable,
                "upsample_nearest2d.vec": conversions.convert_nearest,
            },
        )
    except Exception as error:  # converters raise whatever they trip over
        raise UserError(f"cannot import the network: {_first_line(error)}{_source_of(program, error)}") from error


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


def _decompositions() -> dict[Any, Any]:
    """Return torch's default decompositions, save those of what Relax has whole, or a pass of ours folds."""
    table = torch.export.default_decompositions()
    for kept in _KEPT:
        table.pop(kept, None)
    return table


def _convert_involution2d(node: Any, importer: Any) -> relax.Var:
    x_node, kernel_node, stride, padding, dilation = node.args
    kernel_h, kernel_w = (int(k) for k in kernel_node.meta["val"].shape[2:4])
    call = operator.involution2d(
        importer.env[x_node], _packed_kernel(kernel_node, importer), (kernel_h, kernel_w), stride, padding, dilation
    )
    return importer.block_builder.emit(call)


def _packed_kernel(node: Any, importer: Any) -> relax.Expr:
    """Return the kernel as (N, G*KH*KW, OH, OW), past the view that gave it six dimensions if there is one.

    Going past the view keeps the span convolution's output visible to layout conversion.
    """
    n, groups, kh, kw, oh, ow = node.meta["val"].shape
    packed = (n, groups * kh * kw, oh, ow)
    source = node
    while source.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        source = source.args[0]
        if tuple(source.meta["val"].shape) == packed:
            return importer.env[source]
    return importer.block_builder.emit(relax.op.reshape(importer.env[node], packed))


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
    return own + source_line(node)


def _converted_node(error: Exception) -> torch.fx.Node | None:
    """Return the node that the importer was at when it failed; it raises before the first where it lacks operators."""
    found, trace = None, error.__traceback__
    while trace is not None:
        node = trace.tb_frame.f_locals.get("node")
        if isinstance(node, torch.fx.Node) and node.op == "call_function":
            found = node
        trace = trace.tb_next
    return found
