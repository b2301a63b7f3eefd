# SPDX-License-Identifier: Apache-2.0
"""What would be compiled of a network: its involutions, what else multiplies windows, what cannot be imported."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import fx

from ..errors import UserError
from .importer import core_program, translate
from .recognition.replacement import OPERATORS
from .source import module_path, source_line
from .translator import Refused

_AXES = {operator: axes for axes, operator in OPERATORS.items()}


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
        if node.op == "call_function" and node.target in _AXES:
            found.involutions.append(_involution(node, node not in written))
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            operators[node.target._schema.name.removeprefix("aten::")] += 1
    found.operators = dict(operators.most_common())
    try:
        translate(program)
    except Refused as error:
        found.refusals = [Refusal(str(error), _source(node)) for node in error.nodes]
    except UserError as error:  # of the whole network, or with its line in the message
        found.refusals = [Refusal(str(error), "")]
    return found


def _involution(node: fx.Node, recognised: bool) -> Involution:
    axes = _AXES[cast(torch._ops.OpOverload, node.target)]
    x, kernel, *geometry = cast(tuple[Any, ...], node.args)
    stride, padding, dilation = (tuple(int(v) for v in values) for values in geometry)
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


def _source(node: fx.Node) -> str:
    return source_line(node).strip().removeprefix("(").removesuffix(")")
