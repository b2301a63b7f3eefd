# SPDX-License-Identifier: Apache-2.0
"""What a module computes by itself, between the calls of its children, as a graph in which involutions are operators.

A call of the module is watched: what its children, the modules that have parameters, were given and returned. Then the
module's own code is traced with these results in the children's places, and involutions are recognised in it
(`recognition`). In the graph that comes out the children are called as they are, hooks and training mode included.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ..nn.replace_involutions import Found
from .autocast import no_autocast
from .decompositions import decompositions
from .recognition import recognise
from .recognition.replacement import OPERATORS
from .torch_log import no_graph_on_failure, no_torch_log

_ATEN = torch.ops.aten
_INVOLUTIONS = {operator: axes for axes, operator in OPERATORS.items()}
# operators of this package that the recognition may write beside involutions; they have no kernels for training
_OTHERS = (torch.ops.tvm_involution.local_attention2d.default,)


class NotReplaced(Exception):
    """A module keeps its own code; the message says why."""


@dataclass
class ChildCall:
    """A call of a child: its name in the module, and the tensors that went in and came out."""

    name: str
    given: list[Any]
    given_spec: TreeSpec
    returned: Tensor


@dataclass
class Watched:
    """A call of a module."""

    given: list[Any]
    """the leaves of its arguments"""
    given_spec: TreeSpec
    returned: Any = None
    children: list[ChildCall] = field(default_factory=list)
    problem: str = ""
    """why no graph can be made of it"""


def opaque(module: nn.Module) -> bool:
    """Return whether a child is called as it is: it has parameters, or draws random numbers; others are looked into."""
    plain = type(module).__module__.startswith("torch.nn.")
    random = isinstance(module, (nn.modules.dropout._DropoutNd, nn.RReLU))
    return not plain or random or bool(module._parameters or module._buffers or module._modules)


def _opaque_children(module: nn.Module) -> dict[nn.Module, str]:
    return {child: name for name, child in module.named_modules() if child is not module and opaque(child)}


def watch(module: nn.Module, call: Callable[..., Any], args: Any, keywords: Any) -> Watched:
    """Return what happens in a call of a module's own code."""
    given, spec = tree_flatten((args, keywords))
    watched = Watched(given, spec)
    depth = 0
    handles = []

    def begin(child: nn.Module, child_args: Any, child_keywords: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            started.append(tree_flatten((child_args, child_keywords)))

    def end(child: nn.Module, child_args: Any, child_keywords: Any, returned: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            child_given, child_spec = started.pop()
            if not isinstance(returned, Tensor):
                watched.problem = f"{names[child]} returns no tensor"
            watched.children.append(ChildCall(names[child], child_given, child_spec, returned))

    started: list[tuple[list[Any], TreeSpec]] = []
    names = _opaque_children(module)
    try:
        for child in names:
            handles.append(child.register_forward_pre_hook(begin, with_kwargs=True, prepend=True))
            handles.append(child.register_forward_hook(end, with_kwargs=True))
        watched.returned = call(*args, **keywords)
    finally:
        for handle in handles:
            handle.remove()
    return watched


class _OwnCode(nn.Module):
    """A module's own code as a function of its arguments, its own parameters and what its children returned."""

    def __init__(self, module: nn.Module, call: Callable[..., Any], watched: Watched) -> None:
        super().__init__()
        self.module = module
        self._call, self._watched = call, watched

    def forward(self, given: Sequence[Tensor], returned: Sequence[Tensor]) -> tuple[list[Any], list[list[Tensor]]]:
        """Return the leaves of what it returns, and the tensors that each child is given."""
        tensors = iter(given)
        leaves = [next(tensors) if isinstance(leaf, Tensor) else leaf for leaf in self._watched.given]
        args, keywords = tree_unflatten(leaves, self._watched.given_spec)
        passed: list[list[Tensor]] = []

        def stand_in(child: nn.Module) -> Callable[..., Tensor]:
            def forward(*child_args: Any, **child_keywords: Any) -> Tensor:
                number = len(passed)
                if number >= len(returned) or self._watched.children[number].name != names[child]:
                    raise NotReplaced("its children are called in another order each time")
                passed.append(
                    [leaf for leaf in tree_flatten((child_args, child_keywords))[0] if isinstance(leaf, Tensor)]
                )
                return returned[number]

            return forward

        names = {
            child: name for name, child in self.module.named_modules() if child is not self.module and opaque(child)
        }
        with contextlib.ExitStack() as stack:
            for child in names:
                stack.enter_context(_forward_replaced(child, stand_in(child)))
            out = self._call(*args, **keywords)
        if len(passed) != len(returned):
            raise NotReplaced("its children are called in another order each time")
        return tree_flatten(out)[0], passed


@contextlib.contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Have a module do something else, its hooks left out."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    before = {name: module.__dict__[name] for name in (*hooks, "forward") if name in module.__dict__}
    module.__dict__.update({name: type(before[name])() for name in hooks if name in before}, forward=forward)
    try:
        yield
    finally:
        module.__dict__.pop("forward")
        module.__dict__.update(before)


class OwnGraph:
    """A module's own code for arguments of one kind, with involutions as operators.

    Attributes:
        found: its involutions; none where it has none, and then it is of no use.
        left: a line for each product with windows that is none.
    """

    def __init__(self, module: nn.Module, call: Callable[..., Any], watched: Watched) -> None:
        """Trace it.

        Raises:
            NotReplaced: it cannot be traced.
        """
        if watched.problem:
            raise NotReplaced(watched.problem)
        own = _OwnCode(module, call, watched)
        given = [_single(leaf) for leaf in watched.given if isinstance(leaf, Tensor)]
        returned = [_single(child.returned) for child in watched.children]
        try:
            with torch.no_grad(), no_autocast(), no_torch_log(), no_graph_on_failure(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of its own pytrees
                program = torch.export.export(own, (given, returned)).run_decompositions(decompositions())
        except Exception as error:  # torch.export raises whatever the traced code raises
            raise NotReplaced((str(error).strip() or type(error).__name__).splitlines()[0]) from error
        if program.graph_signature.buffers_to_mutate or program.graph_signature.user_inputs_to_mutate:
            raise NotReplaced("it writes into its buffers or arguments")
        before = {node for node in program.graph.nodes if node.target in _INVOLUTIONS}
        with torch.inference_mode(False), torch.enable_grad(), no_autocast():  # regions are probed by gradients
            self.left = recognise(program)
        nodes = [node for node in program.graph.nodes if node.target in _INVOLUTIONS and node not in before]
        self.found = [] if any(n.target in _OTHERS for n in program.graph.nodes) else [_found(node) for node in nodes]
        self._out_spec = tree_flatten(watched.returned)[1]
        if self.found:
            self._write(module, program, watched, len(given))

    def __call__(self, module: nn.Module, leaves: Sequence[Any]) -> Any:
        """Return what the module returns for the leaves of its arguments."""
        state = [_attribute(module, name) for name in self._state]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return tree_unflatten(list(self._module(*tensors, *state)), self._out_spec)

    def agrees(self, module: nn.Module, watched: Watched) -> bool:
        """Return whether it computes what was watched, given what the children returned then."""
        returned = iter([child.returned.detach() for child in watched.children])
        stand_in = {child.name: (lambda *_, **__: next(returned)) for child in watched.children}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for name, forward in stand_in.items():
                stack.enter_context(_forward_replaced(module.get_submodule(name), forward))
            computed = tree_flatten(self(module, [_detached(leaf) for leaf in watched.given]))[0]
        return all(map(_same, computed, tree_flatten(watched.returned)[0]))

    def _write(self, module: nn.Module, program: torch.export.ExportedProgram, watched: Watched, inputs: int) -> None:
        signature, graph = program.graph_signature, fx.Graph()
        tensors = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        constants = signature.inputs_to_lifted_tensor_constants
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        users = [node for node in placeholders if node.name in signature.user_inputs]
        (outputs,) = next(node for node in program.graph.nodes if node.op == "output").args
        own = iter(outputs)
        total = len(outputs) - sum(_count(child.given) for child in watched.children)
        results = list(itertools.islice(own, total))
        passed = [list(itertools.islice(own, _count(child.given))) for child in watched.children]

        values: dict[fx.Node, fx.Node] = {node: graph.placeholder(f"x{i}") for i, node in enumerate(users[:inputs])}
        used = [node for node in placeholders if node.name in tensors and node.users]
        self._state = [tensors[node.name].removeprefix("module.") for node in used]
        values |= {node: graph.placeholder(f"state{i}") for i, node in enumerate(used)}
        root: dict[str, Any] = {child.name: module.get_submodule(child.name) for child in watched.children}
        called: list[fx.Node] = []

        def value(node: Any) -> Any:
            if not isinstance(node, fx.Node):
                return node
            if node not in values:
                values[node] = written(node)
            return values[node]

        def written(node: Any) -> fx.Node:
            if node in users:
                return child_call(users.index(node) - inputs)
            if node.op in ("placeholder", "get_attr"):
                tensor = (
                    program.constants[constants[node.name]]
                    if node.op == "placeholder"
                    else _attribute(program.graph_module, node.target)
                )
                name = f"constant{sum(key.startswith('constant') for key in root)}"
                root[name] = tensor
                return graph.get_attr(name)
            arguments, keywords = fx.map_arg((node.args, dict(node.kwargs)), value)
            if node.target in _INVOLUTIONS:
                return graph.call_function(_aggregate, arguments, keywords)
            # the graph's tensors lie as they did when it was watched, those to come perhaps otherwise
            target = _ATEN.reshape.default if node.target is _ATEN.view.default else node.target
            return graph.call_function(target, arguments, keywords)

        def child_call(number: int) -> fx.Node:
            while len(called) <= number:
                child = watched.children[len(called)]
                given = iter(passed[len(called)])
                leaves = [value(next(given)) if isinstance(leaf, Tensor) else leaf for leaf in child.given]
                arguments, keywords = tree_unflatten(leaves, child.given_spec)
                called.append(graph.call_module(child.name, tuple(arguments), dict(keywords)))
            return called[number]

        returned = []
        if watched.children:
            child_call(len(watched.children) - 1)
        for result in results:
            returned.append(value(result))
        graph.output(tuple(returned))
        self._module = fx.GraphModule(root, graph)


def _aggregate(input: Tensor, kernel: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """Aggregate tensors of whatever dtypes as a product of them would be computed."""
    dtype = torch.promote_types(input.dtype, kernel.dtype)
    operator = getattr(torch.ops.tvm_involution, f"involution{len(stride)}d")
    return operator(input.to(dtype), kernel.to(dtype), stride, padding, dilation)


def _found(node: fx.Node) -> Found:
    arguments: Any = node.args
    _, kernel, stride, padding, dilation = arguments
    groups, *window = kernel.meta["val"].shape[1 : 2 + len(stride)]
    return Found(tuple(window), tuple(stride), tuple(padding), tuple(dilation), groups)


def _attribute(module: nn.Module, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _count(leaves: Sequence[Any]) -> int:
    return sum(isinstance(leaf, Tensor) for leaf in leaves)


def _single(tensor: Tensor) -> Tensor:
    """Return a tensor to trace with: of a half type the graph would hold casts, which other types do not want."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.detach().to(torch.float32) if half else tensor.detach()


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _same(actual: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return actual == expected
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    most = {torch.float64: 1e-9, torch.float32: 1e-4}.get(expected.dtype, 3e-2)
    difference = (actual.double() - expected.detach().double()).norm()
    return bool(difference <= most * expected.detach().double().norm())
