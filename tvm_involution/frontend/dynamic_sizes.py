# SPDX-License-Identifier: Apache-2.0
"""Programs that were exported with sizes that vary (`dynamic_shapes`), made into programs of given sizes.

The first axis of every input is the batch; of inputs with four axes or more, (N, C, H, W) or (N, C, D, H, W), the last
two are height and width. A program of given sizes is exported anew from the one whose sizes vary, so what depends on
sizes becomes numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils._pytree import tree_leaves, tree_unflatten

from ..errors import UserError
from .autocast import no_autocast
from .sizes import check_size
from .torch_log import no_torch_log

BATCH, HEIGHT, WIDTH = "batch", "height", "width"
ImageSize = tuple[int, int]


@dataclass(frozen=True)
class _Axis:
    """One of an input."""

    input: str
    position: int
    role: str
    """batch, height, width, or "" for another"""
    size: Any
    """a number, or an expression of symbols"""

    @property
    def varies(self) -> bool:
        return not isinstance(self.size, int)


class DynamicSizes:
    """Which sizes of a program vary.

    Attributes:
        batch: whether the batch does.
        picture: whether height or width does.
    """

    def __init__(self, name: str, program: torch.export.ExportedProgram) -> None:
        """Look at the inputs of `program`; `name` is for messages.

        Raises:
            UserError: a size varies that is neither batch, height nor width, or a number among the inputs.
        """
        self._name, self._program = name, program
        self._axes = list(self._read())
        for axis in self._axes:
            if axis.varies and not axis.role:
                raise UserError(
                    f"{name} was exported with sizes that vary, {self._text(axis.input)}; compiled networks have fixed "
                    "ones: of these --batch gives the first axis and --image-size the last two of (N, C, H, W), export "
                    "the others without dynamic_shapes"
                )
        roles = {axis.role for axis in self._axes if axis.varies}
        self.batch, self.picture = BATCH in roles, not roles.isdisjoint((HEIGHT, WIDTH))

    def _read(self) -> Iterator[_Axis]:
        for name, value in _inputs(self._program):
            if not isinstance(value, torch.Tensor):
                if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                    raise UserError(
                        f"{self._name} takes the number {name}, which varies; export it with a number, or a tensor"
                    )
                continue
            sizes: Sequence[Any] = value.shape
            for position, size in enumerate(sizes):
                known = isinstance(size, int) or not size.node.expr.free_symbols
                yield _Axis(name, position, _role(position, value.dim()), int(size) if known else size.node.expr)

    def _text(self, name: str) -> str:
        return f"{name} ({', '.join(str(axis.size) for axis in self._axes if axis.input == name)})"

    def default_batch(self) -> int:
        """Return the smallest batch that the program takes."""
        batches = [axis.size for axis in self._axes if axis.role == BATCH and isinstance(axis.size, sympy.Symbol)]
        return max((self._range(symbol)[0] for symbol in batches), default=1)

    def default_image_size(self) -> ImageSize:
        """Return the height and width of the example inputs that were saved with the program.

        Raises:
            UserError: none were.
        """
        examples = tree_leaves(self._program.example_inputs)
        pictures = [x for x in examples if isinstance(x, torch.Tensor) and x.dim() >= 4]
        if not pictures:
            raise UserError(
                f"{self._name} was exported with a height or width that varies; name it with --image-size, such as "
                "--image-size 224x224"
            )
        return int(pictures[0].shape[-2]), int(pictures[0].shape[-1])

    def bind(self, batch: int | None, image_size: ImageSize | None) -> torch.export.ExportedProgram:
        """Return the program for a batch, where that varies, and an image size, where that does.

        Raises:
            UserError: sizes that the program does not take.
        """
        wanted = {BATCH: batch, HEIGHT: image_size and image_size[0], WIDTH: image_size and image_size[1]}
        symbols: dict[sympy.Symbol, int] = {}
        for axis in self._axes:
            size = wanted.get(axis.role)
            if size is not None and axis.varies:
                self._solve(axis, size, symbols)
        # other inputs may have other sizes that follow from those of the first
        pictures = [axis for axis in self._axes if axis.role in (HEIGHT, WIDTH)]
        first = next((axis.input for axis in pictures if axis.varies), "")
        for axis in pictures:
            size = wanted[axis.role]
            found = int(axis.size.subs(symbols)) if axis.varies else axis.size
            if size is not None and axis.input == first and found != size:
                raise UserError(
                    f"{self._name} takes no {axis.role} of {size}, but {found}: it was exported with "
                    f"{self._text(first)}"
                )
        return self._export(symbols)

    def _solve(self, axis: _Axis, size: int, symbols: dict[sympy.Symbol, int]) -> None:
        """Find the symbol of an axis that has `size`; one that is known stays as it is."""
        free = [symbol for symbol in axis.size.free_symbols if symbol not in symbols]
        if len(free) == 1:
            found = sympy.solve(axis.size.subs(symbols) - size, free[0])
            low, high = self._range(free[0])
            fitting = [int(value) for value in found if value.is_Integer and low <= value <= (high or value)]
            if not fitting:
                limits = f"{free[0]} from {low}" + (f" to {high}" if high is not None else "")
                raise UserError(
                    f"{self._name} takes no {axis.role} of {size}: it was exported with {self._text(axis.input)}, "
                    f"{limits}"
                )
            symbols[free[0]] = fitting[0]

    def _range(self, symbol: sympy.Symbol) -> tuple[int, int | None]:
        """Return the least and the largest value of a symbol; None where there is no largest."""
        limits = self._program.range_constraints.get(symbol)
        if limits is None:
            return 1, None
        # torch writes 2 for all that may be 0 or 1, too
        low = int(limits.lower) if limits.lower > 2 else 1
        return low, int(limits.upper) if limits.upper.is_Integer else None

    def _export(self, symbols: dict[sympy.Symbol, int]) -> torch.export.ExportedProgram:
        leaves = []
        for _, value in _inputs(self._program):
            if isinstance(value, torch.Tensor):
                shape = [d if isinstance(d, int) else int(d.node.expr.subs(symbols)) for d in value.shape]
                check_size(shape)
                value = torch.zeros(shape, dtype=value.dtype)
            leaves.append(value)
        spec = self._program.call_spec.in_spec
        assert spec is not None
        arguments, keywords = tree_unflatten(leaves, spec)
        with torch.no_grad(), no_autocast(), warnings.catch_warnings(), no_torch_log():
            warnings.simplefilter("ignore")
            try:
                return torch.export.export(self._program.module(), arguments, keywords)
            except Exception as error:  # torch.export raises whatever the program's own checks of sizes raise
                shapes = [list(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor)]
                reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise UserError(f"{self._name} does not take inputs {shapes}: {reason}") from error


def _role(position: int, rank: int) -> str:
    if position == 0:
        return BATCH
    return {rank - 2: HEIGHT, rank - 1: WIDTH}.get(position, "") if rank >= 4 else ""


def _inputs(program: torch.export.ExportedProgram) -> Sequence[tuple[str, Any]]:
    """Return name and value of each input in the order of the call: tensors without memory, symbols, constants."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    return [
        (spec.arg.name, spec.arg.value if isinstance(spec.arg, ConstantArgument) else values[spec.arg.name])
        for spec in specs
    ]
