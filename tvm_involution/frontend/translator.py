# SPDX-License-Identifier: Apache-2.0
"""TVM's importer, with our converters in the place of its own and every result checked against what torch says."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import tvm
from torch import fx
from torch.utils._pytree import tree_leaves, tree_map
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from .conversions import CONVERTERS
from .conversions.operation import Node, Operation, constant, dtype_name, dtype_of, shape_of

# what torch works out here because no input matters is kept as a constant up to so many bytes
_LARGEST_CONSTANT = 1 << 22
# assertions of torch.export, about what is known now or nothing that a compiled program could say
_ASSERTIONS = ("_assert_tensor_metadata.default", "_assert_async.msg", "_assert_scalar.default")


class Refused(Exception):
    """Operators that cannot be imported.

    Attributes:
        nodes: the calls of them, which know their lines.
    """

    def __init__(self, reason: str, *nodes: Node) -> None:
        super().__init__(reason)
        self.nodes = nodes


class Translator(ExportedProgramImporter):
    """Writes a Relax function from an exported program, one node after the other."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        """Find out what depends on no input.

        Raises:
            Refused: some operators cannot be imported; the message names all of them.
        """
        super().__init__()
        self._program = program
        self._known = {**_whole_numbers(program), **_scales(program)}
        missing = []
        for node in program.graph.nodes:
            if node.op == "placeholder" and _is_empty(node):
                self._known[node] = torch.zeros(node.meta["val"].shape, dtype=node.meta["val"].dtype)
            if node.op != "call_function" or node.target.__name__ in _ASSERTIONS:
                continue
            self._work_out(node)
            if node not in self._known and node.target.__name__ not in self.convert_map:
                missing.append(node)
        if missing:
            names = list(dict.fromkeys(map(_name, missing)))
            verb = "is" if len(names) == 1 else "are"
            random = [_name(node) for node in missing if _is_random(node)]
            why = f"; {random[0]} draws random numbers, which compiled networks do not" if random else ""
            raise Refused(f"{', '.join(names)} {verb} not supported{why}", *missing)

    def translate(self) -> tvm.IRModule:
        """Return the module with the function `main`, weights bound as constants.

        Raises:
            Refused: an operator cannot be imported with the arguments that it has.
        """
        try:
            return self.from_exported_program(self._program, False, True, False, None)
        except Refused:
            self.block_builder._end_block()  # TVM says on standard error that it is still open
            raise

    def create_convert_map(self) -> dict[str, Callable[[Node], Any]]:
        """Return what converts each operator, by its name in torch."""
        return dict.fromkeys((*CONVERTERS, *_ASSERTIONS, "getitem"), self._convert)

    def _check_unsupported_func_type(self, nodes: list[Node]) -> None:
        """Leave out TVM's check: what is missing was found, and what torch works out needs no converter."""
        names = [node.target.__name__ for node in nodes if node.op == "call_function"]
        self.convert_map.update(dict.fromkeys(names, self._convert))

    def _work_out(self, node: Node) -> None:
        """Let torch compute what depends on no input; what has no elements, or no values, needs no computing."""
        _check_static(node)
        if _is_empty(node) or node.target.__name__.startswith(("empty", "new_empty")):
            self._known[node] = tree_map(lambda value: torch.zeros(value.shape, dtype=value.dtype), node.meta["val"])
        elif self._depends_on_nothing(node):
            arguments, keywords = tree_map(
                lambda x: self._known[x] if isinstance(x, fx.Node) else x, (tuple(node.args), dict(node.kwargs))
            )
            self._known[node] = node.target(*arguments, **keywords)

    def _convert(self, node: Node) -> Any:
        if node.target.__name__ in _ASSERTIONS:
            return None
        if node in self._known:
            return tree_map(lambda value: constant(value.detach().numpy()), self._known[node])
        try:
            if node.target is operator.getitem:
                return self._part(node)
            positional, by_name = self._arguments(node)
            operation = Operation(node, self.block_builder, self.env)
            return self._checked(operation, CONVERTERS[node.target.__name__](operation, *positional, **by_name))
        except Exception as error:  # converters raise whatever they trip over
            lines = str(error).strip().splitlines()
            raise Refused(f"{node.target}: {lines[0] if lines else type(error).__name__}", node) from error

    def _part(self, node: Node) -> Any:
        whole, part = node.args
        values = self.env[whole]
        if part >= len(values):
            raise NotImplementedError(f"its result number {part} of {whole.target} is not supported")
        return values[part]

    def _depends_on_nothing(self, node: Node) -> bool:
        """Return whether torch can work out now what `node` is."""
        # weights in bytes may be multiplied as they are
        if _is_random(node) or (_is_of_quantization(node) and node.target.__name__.startswith("dequantize")):
            return False
        size = sum(
            value.numel() * value.element_size()
            for value in tree_leaves(node.meta["val"])
            if isinstance(value, torch.Tensor)
        )
        return size <= _LARGEST_CONSTANT and all(source in self._known for source in node.all_input_nodes)

    def _arguments(self, node: Node) -> tuple[list[Any], dict[str, Any]]:
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
                raise NotImplementedError(f"it was imported as {got} where torch has {wanted}")
        return made if several else made[0]


def _scales(program: torch.export.ExportedProgram) -> dict[Node, Any]:
    """Return the values of what a quantized program's integers are scaled by: buffers that nobody else reads."""
    signature = program.graph_signature
    tensors = {**dict(program.named_buffers()), **dict(program.named_parameters()), **program.constants}
    targets = {
        **signature.inputs_to_buffers,
        **signature.inputs_to_parameters,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = {}
    for node in program.graph.nodes:
        value = tensors.get(targets.get(node.name, "")) if node.op == "placeholder" else None
        if value is not None and node.users and all(_is_scale(node, user) for user in node.users):
            found[node] = value.detach()
    return found


def _is_scale(node: Node, user: Node) -> bool:
    return user.op == "call_function" and _is_of_quantization(user) and node is not user.args[0]


def _is_of_quantization(node: Node) -> bool:
    return getattr(node.target, "namespace", "") == "quantized_decomposed"


def _whole_numbers(program: torch.export.ExportedProgram) -> dict[Node, Any]:
    """Return the values of buffers and constants of whole numbers: they are indices, often of known places."""
    signature = program.graph_signature
    tensors = {**dict(program.named_buffers()), **program.constants}
    targets = {**signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
    found = {}
    for node in program.graph.nodes:
        value = tensors.get(targets.get(node.name, "")) if node.op == "placeholder" else None
        if isinstance(value, torch.Tensor) and not value.is_floating_point() and not value.is_complex():
            found[node] = value
    return found


def _is_random(node: Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _name(node: Node) -> str:
    """Return an operator's name, also of one that torch wraps because it has effects."""
    wrapped = [argument for argument in node.args if isinstance(argument, torch._ops.OpOverload)]
    return str(wrapped[0] if wrapped else node.target)


def _check_static(node: Node) -> None:
    for value in tree_leaves(node.meta.get("val")):
        sizes = value.shape if isinstance(value, torch.Tensor) else [value]
        if any(isinstance(size, (torch.SymInt, torch.SymBool, torch.SymFloat)) for size in sizes):
            reason = f"{node.target} makes a shape that depends on values; compiled networks have fixed shapes"
            raise Refused(reason, node)


def _is_empty(node: Node) -> bool:
    """Return whether nothing is to be computed."""
    values = tree_leaves(node.meta.get("val"))
    return bool(values) and all(isinstance(value, torch.Tensor) and not value.numel() for value in values)
