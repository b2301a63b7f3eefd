# SPDX-License-Identifier: Apache-2.0
"""The backend itself: graphs of TorchDynamo for inference become libraries, all others run in eager."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import UserError
from .graph import FrozenGraph, unfit_because
from .settings import Settings

_MOST_LIBRARIES = 16
_said: set[str] = set()


def backend(
    graph: fx.GraphModule, inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """Compile a graph of TorchDynamo, as `torch.compile(module, backend="tvm_involution", options={...})` asks for it.

    Weights are frozen: they become part of the library. Where one of them has changed at a call, a new library is made.
    Each combination of sizes gets a library of its own when it is first called. Libraries are kept in a folder, from
    which the next process takes them. What cannot be compiled runs in eager, and a warning says why, once. So does a
    graph whose gradients are wanted.

    Args:
        options: see `Settings`.
        mode: of no use here.

    Returns:
        What runs the graph: inputs of TorchDynamo -> a tuple of outputs.

    Raises:
        UserError: unknown options, or a mode.
    """
    if mode is not None:
        raise UserError(f"mode={mode!r} is for inductor; leave it out, or give options={{'dtype': ...}}")
    settings = Settings.read(options or {})
    if torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in inputs):
        say_once("it compiles for inference: with gradients the network runs in eager; call it under torch.no_grad()")
        return graph
    reason = unfit_because(graph)
    if reason is not None:
        say_once(f"a part of the network runs in eager: {reason}")
        return graph
    return Libraries(graph, inputs, settings)


def say_once(text: str) -> None:
    """Warn, of each thing but once a process."""
    if text not in _said:
        _said.add(text)
        warnings.warn(f"tvm_involution: {text}", stacklevel=2)


class Libraries:
    """The libraries of one graph, one for each combination of sizes that it was called with."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Any], settings: Settings) -> None:
        self._graph = graph
        self._frozen = FrozenGraph(graph, inputs)
        self._settings = settings
        self._runs: dict[Any, Callable[..., tuple[Any, ...]]] = {}
        self._refused: set[Any] = set()
        self._made = 0
        self._weights: tuple[Any, ...] = ()

    def __call__(self, *inputs: Any) -> Any:
        """Run the graph with the library for these inputs, which is made where there is none yet."""
        key = tuple(
            (x.shape, x.dtype, x.device) if isinstance(x, torch.Tensor) else x for x in self._frozen.arguments(inputs)
        )
        if key in self._refused:
            return self._graph(*inputs)
        weights = self._frozen.state(inputs)
        if weights != self._weights:
            self._runs.clear()
            self._weights = weights
        run = self._runs.get(key) or self._make(key, inputs)
        return run(*inputs)

    def _make(self, key: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        from .library import library_for  # the compiler, which the first call alone needs

        try:
            if self._made >= _MOST_LIBRARIES:
                raise UserError(f"a graph has got {_MOST_LIBRARIES} libraries, for other sizes or since weights change")
            run = self._runs[key] = library_for(self._frozen, inputs, self._settings)
        except UserError as error:
            say_once(f"a part of the network runs in eager: {error}")
            self._refused.add(key)
            return self._graph
        self._made += 1
        return run
