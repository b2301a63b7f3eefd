# SPDX-License-Identifier: Apache-2.0
"""What would be compiled of a network: its involutions, what else multiplies windows, what cannot be imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from ..errors import UserError
from .importer import core_program
from .source import module_path, source_line
from .translator import Refused, Translator

_OPERATORS = {getattr(torch.ops.tvm_involution, f"involution{axes}d").default: axes for axes in (1, 2, 3)}


@dataclass(frozen=True)
class Involution:
    """An involution of the network; a number an axis where there are several, the rows' first."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    channels: int
    groups: int
    input_size: tuple[int, ...]
    """pixels along each axis"""
    output_size: tuple[int, ...]
    recognised: bool
    """whether it was written otherwise than as this package's operator, and found by what it computes"""
    module: str
    """the module that calls it, as `named_modules` names it"""
    source: str
    """`file:line: code` of the user's call; empty where torch does not know"""


@dataclass(frozen=True)
class Refusal:
    """An operator that cannot be imported."""

    reason: str
    source: str


@dataclass
class Explanation:
    """What `explain` found."""

    involutions: list[Involution] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """products with windows that are computed as they are written, a line each"""
    refusals: list[Refusal] = field(default_factory=list)
    """why the network cannot be compiled; empty where it can"""
    operators: dict[str, int] = field(default_factory=dict)
    """how often each other operator is called, after torch has taken the large ones apart; most frequent first"""


def explain(program: torch.export.ExportedProgram) -> Explanation:
    """Return what would be compiled of `program`, and what could not be.

    Raises:
        UserError: torch cannot take the program apart.
    """
    found = Explanation()
    program, written = core_program(program, found.notes.append)
    operators: Counter[str] = Counter()
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _OPERATORS:
            found.involutions.append(_involution(node, node not in written))
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            operators[node.target._schema.name.removeprefix("aten::")] += 1
    found.operators = dict(operators.most_common())
    try:
        Translator(program).translate()
    except Refused as error:
        found.refusals = [Refusal(str(error), _source(node)) for node in error.nodes]
    except Exception as error:  # TVM's importer, over what is no operator
        raise UserError(f"cannot import the network: {str(error).strip().splitlines()[0]}") from error
    return found


def _involution(node: fx.Node, recognised: bool) -> Involution:
    axes = _OPERATORS[cast(torch._ops.OpOverload, node.target)]
    x, kernel, *geometry = cast(tuple[Any, ...], node.args)
    stride, padding, dilation = (_per_axis(value, axes) for value in geometry)
    shape, kernel_shape, out_shape = (tuple(int(d) for d in n.meta["val"].shape) for n in (x, kernel, node))
    return Involution(
        kernel_size=kernel_shape[2 : 2 + axes],
        stride=stride,
        padding=padding,
        dilation=dilation,
        channels=shape[1],
        groups=kernel_shape[1],
        input_size=shape[2:],
        output_size=out_shape[2:],
        recognised=recognised,
        module=module_path(node),
        source=_source(node),
    )


def _per_axis(value: int | Sequence[Any], axes: int) -> tuple[int, ...]:
    values = [value] if isinstance(value, int) else list(value)
    return tuple(int(v) for v in (values * axes if len(values) == 1 else values))


def _source(node: fx.Node) -> str:
    return source_line(node).strip().removeprefix("(").removesuffix(")")
