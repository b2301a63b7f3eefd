# SPDX-License-Identifier: Apache-2.0
"""A graph of TorchDynamo with its weights, which it gets as inputs, put back into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import traceback as fx_traceback

from ..errors import UserError


def unfit_because(graph: fx.GraphModule) -> str | None:
    """Return why a graph cannot become a library: what it returns; None where it can."""
    values = [_value(output) for output in _outputs(graph)]
    if not any(isinstance(value, torch.Tensor) for value in values):
        return "it returns no tensor"
    storages = {_storage(_value(node)) for node in graph.graph.nodes if node.op == "placeholder"} - {None}
    if any(_storage(value) in storages for value in values):
        return "it returns a view of what it is given"
    return None


class FrozenGraph:
    """A graph whose weights are told from its inputs.

    TorchDynamo passes parameters and buffers as inputs; it marks those that stay where they are.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.graph = graph
        self._weights = [index for index, value in enumerate(inputs) if _is_weight(value)]
        self._arguments = sorted(set(range(len(inputs))) - set(self._weights))
        values = [_value(output) for output in _outputs(graph)]
        self.dtypes = [value.dtype if isinstance(value, torch.Tensor) else None for value in values]
        """of the outputs; None of one that is no tensor"""

    def state(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """Return what changes when a weight is written to, replaced or moved."""
        return tuple((inputs[index]._version, inputs[index].data_ptr()) for index in self._weights)

    def arguments(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the inputs that are no weights: tensors, and the sizes that vary."""
        return [inputs[index] for index in self._arguments]

    def weights(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """Return the weights."""
        return [inputs[index] for index in self._weights]

    def tensors(self, inputs: Sequence[Any]) -> list[int]:
        """Return which inputs are tensors that come with each call."""
        return [index for index in self._arguments if isinstance(inputs[index], torch.Tensor)]

    def numbers(self, inputs: Sequence[Any]) -> list[Any]:
        """Return the outputs for inputs of these sizes, those that are no tensors (sizes, None) as they are.

        Raises:
            UserError: the graph writes into its inputs or weights.
        """
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            fakes = [mode.from_tensor(x.detach()) if isinstance(x, torch.Tensor) else x for x in inputs]
            before = [x._version for x in fakes if isinstance(x, torch.Tensor)]
            outputs = list(fx.Interpreter(self.graph).run(*fakes))
        if before != [x._version for x in fakes if isinstance(x, torch.Tensor)]:
            raise UserError("it writes into what it is given, or into its weights")
        return outputs

    def as_module(self, inputs: Sequence[Any]) -> torch.nn.Module:
        """Return the graph as a module of the tensors that come with each call.

        Weights are its own; sizes are what they are in `inputs`.
        """
        return _Frozen(self.graph, inputs, self.tensors(inputs))


class _Frozen(torch.nn.Module):
    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any], free: Sequence[int]) -> None:
        super().__init__()
        self._graph = graph
        self._free = list(free)
        self._fixed = list(inputs)
        for index in free:
            self._fixed[index] = None
        for index, value in enumerate(self._fixed):
            if isinstance(value, torch.Tensor):
                self.register_buffer(f"w{index}", value.detach())
                self._fixed[index] = None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = [getattr(self, f"w{index}", value) for index, value in enumerate(self._fixed)]
        for index, tensor in zip(self._free, tensors, strict=True):
            inputs[index] = tensor
        # what is traced node by node keeps the user's lines
        with fx_traceback.preserve_node_meta():
            outputs = fx.Interpreter(self._graph).run(*inputs)
        return tuple(output for output in outputs if isinstance(output, torch.Tensor))


def _is_weight(value: Any) -> bool:
    static = getattr(value, "_dynamo_static_input_type", None) is not None
    return isinstance(value, torch.Tensor) and (isinstance(value, torch.nn.Parameter) or static)


def _outputs(graph: fx.GraphModule) -> list[Any]:
    (returned,) = next(iter(reversed(graph.graph.nodes))).args
    return list(returned) if isinstance(returned, (tuple, list)) else [returned]


def _value(output: Any) -> Any:
    """Return the value that TorchDynamo has seen, of no memory."""
    return output.meta.get("example_value") if isinstance(output, fx.Node) else output


def _storage(value: Any) -> int | None:
    return value.untyped_storage()._cdata if isinstance(value, torch.Tensor) else None
