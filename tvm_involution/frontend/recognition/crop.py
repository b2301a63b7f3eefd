# SPDX-License-Identifier: Apache-2.0
"""The arguments of a region's operators when its tensors have fewer pixels, or pictures, than in the graph.

Sizes stand in a graph as numbers. Here those of views follow from what their source has become, and places along an
axis that is shorter keep their distance from the nearer end. What cannot be told so is refused: a place far from both
ends, numbers for each pixel, a sum over pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .forms import Node, shape_of
from .operators import EXPAND, IM2COL, SUMS, VIEWS

_ATEN = torch.ops.aten
# of which an axis that has become shorter would need other numbers
_SIZED = {
    _ATEN.as_strided.default,
    _ATEN.diagonal.default,
    _ATEN.index.Tensor,
    _ATEN.index_select.default,
    _ATEN.select_scatter.default,
    _ATEN.slice_scatter.default,
    _ATEN.split_with_sizes.default,
}
_Part = tuple[int, int]
"""an axis, or a part of one: its size in the graph, and now"""


class NotCropped(Exception):
    """The message says what cannot be made smaller."""


class Cropping:
    """Follows the sizes of a region's tensors from operator to operator."""

    def __init__(self) -> None:
        self._joined: dict[_Part, list[_Part]] = {}
        """what an axis consists of that several were joined to"""

    def arguments(self, node: Node, arguments: list[Any]) -> list[Any]:
        """Return the arguments of a call whose tensors, evaluated, are among `arguments`.

        Raises:
            NotCropped: they cannot be told.
        """
        sources = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
        if not sources or not isinstance(arguments[0], torch.Tensor):
            return arguments
        full, now = shape_of(sources[0]), tuple(arguments[0].shape)
        resized = {axis for axis, (size, left) in enumerate(zip(full, now, strict=True)) if size != left}
        if not resized:
            return arguments
        if node.target in VIEWS:
            arguments[1] = self._view(full, now, shape_of(node))
        elif node.target is EXPAND:
            sizes = shape_of(node)
            before = (0,) * (len(sizes) - len(full)) + full
            arguments[1] = [-1 if size == old else size for size, old in zip(sizes, before, strict=True)]
        elif node.target is _ATEN.slice.Tensor:
            axis = (arguments[1] if len(arguments) > 1 else 0) % len(full)
            if axis in resized:
                for position in (2, 3):
                    if len(arguments) > position and arguments[position] is not None:
                        arguments[position] = _place(arguments[position], full[axis], now[axis])
        elif node.target is _ATEN.select.int:
            axis = arguments[1] % len(full)
            if axis in resized:
                arguments[2] = _place(arguments[2], full[axis], now[axis])
        elif node.target is IM2COL:
            counts = [_windows(sizes[2:], *arguments[1:]) for sizes in (full, now)]
            pixels = [size * count for size, count in counts]
            self._joined[pixels[0], pixels[1]] = list(zip(*counts, strict=True))
        elif node.target in SUMS and any(axis % len(full) in resized for axis in arguments[1]):
            raise NotCropped("it sums over pixels")
        elif node.target in _SIZED and not _along_others(node, arguments, resized):
            raise NotCropped(f"{node.target} has numbers for each pixel")
        return arguments

    def _view(self, full: Sequence[int], now: Sequence[int], target: Sequence[int]) -> list[int]:
        """Return the sizes of a view whose source has become smaller."""
        parts = [part for axis in zip(full, now, strict=True) for part in self._joined.get(axis, [axis])]
        sizes = []
        for size in target:
            taken: list[_Part] = []
            rest = size
            while rest > 1:
                before, left = parts.pop(0)
                if rest % before:
                    if before % rest or before != left:
                        raise NotCropped("a view splits an axis of pixels")
                    parts.insert(0, (before // rest, before // rest))
                    before = left = rest
                rest //= before
                if before > 1:
                    taken.append((before, left))
            small = 1
            for _, left in taken:
                small *= left
            if len(taken) > 1 and small != size:
                self._joined[size, small] = taken
            sizes.append(small)
        return sizes


def _place(place: int, full: int, now: int) -> int:
    """Return a place along an axis that has become shorter, as far from the nearer end as it was."""
    place = max(0, place + full if place < 0 else min(place, full))
    if place <= now // 2:
        return place
    if full - place <= now // 2:
        return place - full + now
    raise NotCropped("a place along an axis of pixels is far from both ends")


def _windows(
    sizes: Sequence[int], kernel: Sequence[int], dilation: Sequence[int], padding: Sequence[int], stride: Sequence[int]
) -> _Part:
    """Return how many windows an unfold takes along both axes."""
    rows, columns = (
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, step, pad, jump in zip(sizes, kernel, dilation, padding, stride, strict=True)
    )
    return rows, columns


def _along_others(node: Node, arguments: list[Any], resized: set[int]) -> bool:
    """Whether an operator with numbers for the places of one axis works along one that has its size."""
    if node.target is _ATEN.index_select.default:
        return arguments[1] % arguments[0].dim() not in resized
    if node.target is _ATEN.split_with_sizes.default:
        return (arguments[2] if len(arguments) > 2 else 0) % arguments[0].dim() not in resized
    if node.target is _ATEN.index.Tensor:
        return all(index is None or axis not in resized for axis, index in enumerate(arguments[1]))
    return False
