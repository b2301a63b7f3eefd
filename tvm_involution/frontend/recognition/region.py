# SPDX-License-Identifier: Apache-2.0
"""A part of a graph between two tensors and one result, as a function that can be evaluated."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable

import torch
from torch import fx
from torch.utils._pytree import tree_map, tree_map_only

from ..rebatch import resized_view
from .crop import Cropping
from .forms import Node, shape_of
from .operators import EXPAND, VIEWS

# the largest tensor that is evaluated, in elements; eight bytes each
_LARGEST = 1 << 27
# of a larger batch, so many are enough to see that pictures do not mix
_BATCH = 2
# of a larger picture, so many pixels along an axis, and what is left of a multiple of every stride that occurs
_PIXELS, _STRIDES = 36, 12


class Region:
    """What leads from `x` and `kernel` to `result`, evaluated in float64.

    Attributes:
        batch: pictures that are evaluated, of `full_batch` that the graph has.
        channels_last: whether x is (N, *spatial, C) in the graph; the function takes (N, C, *spatial).
        removed: pixels along each spatial axis that x has more in the graph than in what is evaluated.
    """

    def __init__(
        self,
        x: Node,
        kernel: Node,
        result: Node,
        value_of: Callable[[Node], torch.Tensor | None],
        channels_last: bool = False,
    ) -> None:
        """Collect the nodes between; `value_of` returns the values of a weight."""
        self.x, self.kernel, self.result = x, kernel, result
        self.nodes = between(result, {x, kernel})
        self._value_of = value_of
        self.channels_last = channels_last
        self.full_batch = self.batch = shape_of(x)[0]
        self.removed = (0,) * (len(shape_of(x)) - 2)

    def reduce_batch(self) -> None:
        """Take few pictures for many from here on, if the region can be evaluated so."""
        shapes = shape_of(self.kernel), shape_of(self.result)
        if not all(shapes) or any(shape[0] % self.full_batch for shape in shapes):
            return
        self.batch = min(_BATCH, self.full_batch)
        if self.batch < self.full_batch and self.fits and self._of_zeros() is None:
            self.batch = self.full_batch

    def reduce_size(self) -> bool:
        """Take fewer pixels from here on; return whether the region can be evaluated so."""
        sizes, kernel = self.x_shape(self.x)[2:], shape_of(self.kernel)
        removed = tuple(max(0, size - _PIXELS) // _STRIDES * _STRIDES for size in sizes)
        constants = (node for node in self.nodes if not node.all_input_nodes)
        if (
            not any(removed)
            or self.channels_last
            or len(kernel) < 2 + len(sizes)
            or any(math.prod(shape_of(node)) > 1 and set(shape_of(node)) & set(sizes) for node in constants)
        ):
            return False
        self.removed = removed
        result = self._of_zeros()
        self._result_shape = () if result is None else tuple(result.shape)
        return result is not None

    def _of_zeros(self) -> torch.Tensor | None:
        """Return the result of zeros, None where an operator in it does not take the sizes that are evaluated."""
        shapes = self.evaluated(self.x), self.resized(self.kernel)
        try:
            return self(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))
        except Exception:  # operators raise whatever their checks of shapes raise
            return None

    def structure(self) -> tuple[Hashable, ...]:
        """Return what the function depends on: regions of equal structure compute the same."""
        names = {node: f"%{number}" for number, node in enumerate((self.x, self.kernel, *self.nodes))}
        written: list[Hashable] = [self.channels_last]
        for node in names:
            value = node.meta.get("val")
            layout = (value.shape, value.stride(), value.dtype) if isinstance(value, torch.Tensor) else ()
            if node is self.x or node is self.kernel:
                written.append(layout)
            elif node.op == "call_function":
                arguments = fx.map_arg((node.args, node.kwargs), names.__getitem__)
                written.append((node.target, repr(arguments), layout))
            else:
                written.append((_digest(self._constant(node)), layout))
        return tuple(written)

    @property
    def fits(self) -> bool:
        """Whether it can be evaluated with the memory that one may take."""
        largest = max(math.prod(shape_of(node)) for node in self.nodes)
        return largest // self.full_batch * self.batch <= _LARGEST

    def evaluated(self, node: Node) -> tuple[int, ...]:
        """Return the shape (N, C, *spatial) of `node`, x or what it is made of, as far as it is evaluated."""
        shape = self.x_shape(node)
        spatial = (size - less for size, less in zip(shape[2:], self.removed, strict=True))
        return (self.batch, shape[1], *spatial)

    @property
    def closed(self) -> bool:
        """Whether nothing but `x`, `kernel`, weights and constants goes in."""
        return all(node.op != "placeholder" or self._value_of(node) is not None for node in self.nodes)

    def resized(self, node: Node) -> tuple[int, ...]:
        """Return the shape of the kernel or the result, as far as it is evaluated."""
        if any(self.removed) and node is self.result:
            return self._result_shape
        shape = list(shape_of(node))
        for axis, (less, pixels) in enumerate(zip(self.removed, self.x_shape(self.x)[2:], strict=True)):
            place = len(shape) - len(self.removed) + axis
            if less:
                shape[place] -= less // max(1, round(pixels / shape[place]))
        if self.batch != self.full_batch:
            shape[0] = shape[0] // self.full_batch * self.batch
        return tuple(shape)

    def x_shape(self, node: Node) -> tuple[int, ...]:
        """Return the shape of `node`, x or what it is made of, as (N, C, *spatial) for the graph's batch."""
        shape = shape_of(node)
        return (shape[0], shape[-1], *shape[1:-1]) if self.channels_last else shape

    def __call__(self, x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Return the result."""
        x = x.movedim(1, -1) if self.channels_last else x
        cropping = Cropping() if any(self.removed) else None
        values: dict[Node, object] = {self.x: _laid_out(x, self.x), self.kernel: _laid_out(kernel, self.kernel)}
        last = {source: node for node in self.nodes for source in node.all_input_nodes}
        for node in self.nodes:
            values[node] = self._evaluate(node, values, cropping)
            for source in node.all_input_nodes:
                if last[source] is node:
                    values.pop(source, None)
        result = values[self.result]
        assert isinstance(result, torch.Tensor)
        return result

    def _constant(self, node: Node) -> torch.Tensor:
        value = self._value_of(node) if node.op == "placeholder" else getattr(node.graph.owning_module, node.target)
        assert isinstance(value, torch.Tensor)
        return value

    def _evaluate(self, node: Node, values: dict[Node, object], cropping: Cropping | None) -> object:
        if node.op != "call_function":
            return _double(self._constant(node))
        arguments = list(tree_map_only(fx.Node, values.__getitem__, node.args))
        keywords = tree_map_only(fx.Node, values.__getitem__, dict(node.kwargs))
        if cropping is not None:
            arguments = cropping.arguments(node, arguments)
        elif self.batch != self.full_batch:
            source = node.all_input_nodes[0] if node.all_input_nodes else None
            if node.target in VIEWS:
                before = shape_of(source)
                arguments[1] = resized_view(before, arguments[0].shape, shape_of(node), self.full_batch, self.batch)
            elif node.target is EXPAND:
                sizes, before = shape_of(node), shape_of(source)
                before = (0,) * (len(sizes) - len(before)) + before
                arguments[1] = [-1 if size == old else size for size, old in zip(sizes, before, strict=True)]
        return tree_map(_double, node.target(*arguments, **keywords))


def between(result: Node, stops: set[Node]) -> list[Node]:
    """Return `result` and what leads to it from `stops`, which are left out, in the graph's order."""
    found: set[Node] = set()
    waiting = [result]
    while waiting:
        node = waiting.pop()
        if node not in found and node not in stops:
            found.add(node)
            waiting += node.all_input_nodes
    return [node for node in result.graph.nodes if node in found]


def _digest(value: torch.Tensor) -> bytes:
    return hashlib.sha256(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()).digest()


def _double(value):
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


def _laid_out(value: torch.Tensor, node: Node) -> torch.Tensor:
    """Return `value` in memory as the graph has it, which `as_strided` sees."""
    strides = node.meta["val"].stride()
    order = sorted(range(value.dim()), key=lambda axis: -strides[axis])
    if order == list(range(value.dim())):
        return value.contiguous()
    return value.permute(order).contiguous().permute([order.index(axis) for axis in range(value.dim())])
