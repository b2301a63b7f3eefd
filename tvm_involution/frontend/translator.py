# SPDX-License-Identifier: Apache-2.0
"""TVM's importer, with our converters in the place of its own and every result checked against what torch says."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from .conversions import CONVERTERS
from .conversions.operation import Operation, constant, dtype_name, dtype_of, shape_of

# what torch works out here because no input matters is kept as a constant up to so many bytes
_LARGEST_CONSTANT = 1 << 22
# assertions of torch.export, about what is known now or nothing that a compiled program could say
_ASSERTIONS = ("_assert_tensor_metadata.default", "_assert_async.msg", "_assert_scalar.default")


class Translator(ExportedProgramImporter):
    """Writes a Relax function from an exported program, one node after the other."""

    def __init__(self) -> None:
        self._known: dict[fx.Node, Any] = {}
        super().__init__()

    def translate(self, program: torch.export.ExportedProgram) -> Any:
        """Return the module with the function `main`, weights bound as constants."""
        self._remember_whole_numbers(program)
        return self.from_exported_program(program, False, True, False, None)

    def create_convert_map(self) -> dict[str, Callable[[fx.Node], Any]]:
        """Return what converts each operator, by its name in torch."""
        return dict.fromkeys((*CONVERTERS, *_ASSERTIONS, "getitem"), self._convert)

    def _check_unsupported_func_type(self, nodes: list[fx.Node]) -> None:
        """Leave it to `_convert`, which comes by the node in question."""
        names = [node.target.__name__ for node in nodes if node.op == "call_function"]
        self.convert_map.update(dict.fromkeys(names, self._convert))

    def _remember_whole_numbers(self, program: torch.export.ExportedProgram) -> None:
        """Keep the values of buffers and constants of whole numbers: they are indices, often of known places."""
        signature = program.graph_signature
        tensors = {**dict(program.named_buffers()), **program.constants}
        targets = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        for node in program.graph.nodes:
            value = tensors.get(targets.get(node.name)) if node.op == "placeholder" else None
            if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex():
                self._known[node] = value

    def _convert(self, node: fx.Node) -> Any:
        name = node.target.__name__
        if name in _ASSERTIONS:
            return None
        _check_static(node)
        if _is_empty(node):
            self._known[node] = tree_map(lambda value: torch.zeros(value.shape, dtype=value.dtype), node.meta["val"])
        elif self._depends_on_nothing(node):
            arguments, keywords = tree_map(lambda x: self._known.get(x, x) if isinstance(x, fx.Node) else x,
                                           (tuple(node.args), dict(node.kwargs)))
            self._known[node] = node.target(*arguments, **keywords)
        if node in self._known:
            return tree_map(lambda value: constant(value.detach().numpy()), self._known[node])
        if node.target is operator.getitem:
            return self._part(node)
        if name not in CONVERTERS:
            raise NotImplementedError(f"{name} is not supported")
        positional, by_name = self._arguments(node)
        operation = Operation(node, self.block_builder, self.env)
        results = CONVERTERS[name](operation, *positional, **by_name)
        return self._checked(operation, results)

    def _part(self, node: fx.Node) -> Any:
        whole, part = node.args
        values = self.env[whole]
        if part >= len(values):
            raise NotImplementedError(f"result {part} of {whole.target.__name__} is not supported")
        return values[part]

    def _depends_on_nothing(self, node: fx.Node) -> bool:
        """Return whether torch can work out now what `node` is."""
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            return False
        size = sum(
            value.numel() * value.element_size()
            for value in torch.utils._pytree.tree_leaves(node.meta["val"])
            if isinstance(value, torch.Tensor)
        )
        return size <= _LARGEST_CONSTANT and all(source in self._known for source in node.all_input_nodes)

    def _arguments(self, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments in the schema's order and those by name, defaults filled in, tensors as Relax."""
        positional, by_name = [], {}
        for place, argument in enumerate(node.target._schema.arguments):
            if place < len(node.args) and not argument.kwarg_only:
                value = node.args[place]
            else:
                value = node.kwargs.get(argument.name, argument.default_value)
            value = tree_map(self._value, value)
            if argument.kwarg_only:
                by_name[argument.name] = value
            else:
                positional.append(value)
        return positional, by_name

    def _value(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node):
            return argument
        if argument in self._known:
            return constant(self._known[argument].numpy())
        value = self.env[argument]
        return constant(value.detach().numpy()) if isinstance(value, torch.Tensor) else value

    def _checked(self, operation: Operation, results: Any) -> Any:
        """Return what a converter made, bound, if it has the shapes and the dtypes that torch says."""
        several = isinstance(results, (list, tuple))
        made = [operation.emit(result) for result in (results if several else [results])]
        for result, expected in zip(made, operation.results, strict=False):
            got = f"{dtype_of(result)}{list(shape_of(result))}"
            wanted = f"{dtype_name(expected.dtype)}{[int(size) for size in expected.shape]}"
            if got != wanted:
                name = operation.node.target.__name__
                raise NotImplementedError(f"{name} was imported as {got} where torch has {wanted}")
        return made if several else made[0]


def _check_static(node: fx.Node) -> None:
    for value in torch.utils._pytree.tree_leaves(node.meta.get("val")):
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        if any(isinstance(size, (torch.SymInt, torch.SymBool, torch.SymFloat)) for size in sizes):
            raise NotImplementedError(
                f"{node.target.__name__} makes a shape that depends on values; compiled networks have fixed shapes"
            )


def _is_empty(node: fx.Node) -> bool:
    """Return whether nothing is to be computed."""
    values = torch.utils._pytree.tree_leaves(node.meta["val"])
    return bool(values) and all(isinstance(value, torch.Tensor) and not value.numel() for value in values)
