# SPDX-License-Identifier: Apache-2.0
"""Put this package's operator in the place of involutions that somebody wrote, in a module that goes on training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from ..errors import UserError
from ..nn.replace_involutions import Found, Replacements
from .evaluation_mode import evaluation_mode
from .own_code import NotReplaced, OwnGraph, watch

_MOST = 1e-4
# kinds of arguments of a module; beyond, its own code serves
_KINDS = 64


def replace_involutions(module: nn.Module, example: Tensor | Sequence[Any] | None = None) -> Replacements:
    """See `tvm_involution.nn.replace_involutions`."""
    arguments = (torch.randn(1, 3, 224, 224),) if example is None else example
    inputs = (arguments,) if isinstance(arguments, Tensor) else tuple(arguments)
    candidates = {name: part for name, part in module.named_modules() if _is_candidate(part)}
    code = {name: _Code(part) for name, part in candidates.items()}
    try:
        with evaluation_mode(module), torch.no_grad():
            try:
                for part in code.values():
                    part.install()
                before = module(*inputs)
            except Exception as error:  # a module raises whatever its code raises
                shapes = [list(x.shape) for x in tree_leaves(inputs) if isinstance(x, Tensor)]
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(
                    f"{type(module).__name__} cannot be called with {shapes}: {first}; give an example"
                ) from error
            left = []
            for name, part in code.items():
                if not part.found:
                    part.remove()
                left += [f"{name or type(module).__name__}: {line}" for line in part.left]
            apart = _difference(module(*inputs), before)
    except BaseException:
        for part in code.values():
            part.remove()
        raise
    if apart > _MOST:
        for part in code.values():
            part.remove()
        raise UserError(
            f"the outputs differ by {apart:.1e} after the replacement, which was taken back; report the module"
        )
    return Replacements({name: part.found for name, part in code.items() if part.found}, tuple(left), apart)


class _Code:
    """The code of a module, in the place of its `forward`: for each kind of arguments a graph, once they have come."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._own: Callable[..., Any] | None = module.__dict__.get("forward")
        self._graphs: dict[Any, OwnGraph | None] = {}
        self.found: tuple[Found, ...] = ()
        self.left: list[str] = []

    def install(self) -> None:
        """Take the place of the module's code."""
        self._module.__dict__["forward"] = self

    def remove(self) -> None:
        """Give it back its own."""
        if self._module.__dict__.get("forward") is self:
            del self._module.__dict__["forward"]
            if self._own is not None:
                self._module.__dict__["forward"] = self._own

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        leaves, spec = tree_flatten((args, keywords))
        if torch.compiler.is_exporting() or not all(map(_is_plain, leaves)):
            return self._call(*args, **keywords)
        key = (str(spec), *map(_kind, leaves), self._module.training, _autocast(leaves))
        graph = self._graphs.get(key)
        if graph is not None:
            return graph(self._module, leaves)
        if key in self._graphs or len(self._graphs) >= _KINDS:
            return self._call(*args, **keywords)
        return self._first(key, args, keywords)

    def _call(self, *args: Any, **keywords: Any) -> Any:
        """Run the module's own code."""
        return (self._own or type(self._module).forward.__get__(self._module))(*args, **keywords)

    @torch.compiler.disable
    def _first(self, key: Any, args: Any, keywords: Any) -> Any:
        """Run the module's own code, and make a graph of it for the next time."""
        self._graphs[key] = None
        watched = watch(self._module, self._call, args, keywords)
        try:
            graph = OwnGraph(self._module, self._call, watched)
            self.left += [line for line in graph.left if line not in self.left]
            if graph.found and graph.agrees(self._module, watched):
                self.found = self.found or tuple(graph.found)
                self._graphs[key] = graph
        except NotReplaced as error:
            if _takes_windows(self._module):
                self.left.append(f"it cannot be traced: {error}")
        return watched.returned

    def __deepcopy__(self, memo: dict[int, Any]) -> _Code:
        other = _Code.__new__(_Code)
        memo[id(self)] = other
        other.__dict__ = {**self.__dict__, "_graphs": {}, "_module": copy.deepcopy(self._module, memo)}
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_graphs": {}}


def _is_candidate(module: nn.Module) -> bool:
    """Return whether a module has code of somebody else, in which an involution may be."""
    return not type(module).__module__.startswith(("torch.nn.", "tvm_involution."))


def _takes_windows(module: nn.Module) -> bool:
    """Return whether a module seems to take windows itself."""
    names = getattr(type(module).forward, "__code__", None)
    children = (type(child) for child in module.children())
    return nn.Unfold in children or (names is not None and "unfold" in names.co_names)


def _kind(leaf: Any) -> Any:
    """Return what a graph depends on of an argument."""
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device
    return repr(leaf)


def _is_plain(leaf: Any) -> bool:
    return not isinstance(leaf, Tensor) or type(leaf) in (Tensor, nn.Parameter)


def _autocast(leaves: Sequence[Any]) -> Any:
    """Return in which type autocast computes where the tensors are; None without it."""
    device = next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _difference(outputs: Any, before: Any) -> float:
    """Return the relative norm of the difference of two calls' outputs, the largest of their tensors."""
    pairs = zip(tree_leaves(outputs), tree_leaves(before), strict=True)
    errors = [
        float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30))
        for a, b in pairs
        if isinstance(b, Tensor) and b.numel()
    ]
    return max(errors, default=0.0)
