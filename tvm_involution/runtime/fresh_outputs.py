# SPDX-License-Identifier: Apache-2.0
"""Outputs that would share memory with something else: a caller who writes into one must change nothing but that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class FreshOutputs:
    """Tells the outputs of one function that are in memory of their own.

    An output may be an input, another output, or a weight, as it is or reshaped. Where the library keeps its weights it
    does not say; but memory that it returned before, while that is still held, can only be its own. So what the first
    call returns is held until the second has been compared with it.
    """

    def __init__(self) -> None:
        # nothing; then what the first call returned; then the numbers of the outputs that the library keeps. Threads
        # may call at once, so it is read once and replaced as a whole.
        self._known: tuple[Any, ...] | frozenset[int] | None = None

    def which(self, results: Sequence[Any], inputs: Sequence[Any]) -> list[bool]:
        """Return for each of `results` of a call whether the caller may have it as it is."""
        known = self._known
        if known is None:
            kept = frozenset(range(len(results)))
            self._known = tuple(results)
        elif isinstance(known, tuple):
            held = [_extent(tensor) for tensor in known]
            self._known = kept = frozenset(i for i, result in enumerate(results) if _overlaps(_extent(result), held))
        else:
            kept = known
        taken = [_extent(tensor) for tensor in inputs]
        fresh = []
        for number, result in enumerate(results):
            extent = _extent(result)
            fresh.append(number not in kept and not _overlaps(extent, taken))
            taken.append(extent)
        return fresh


def _extent(tensor: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of a contiguous tensor, and of the first behind it."""
    start = tensor.data_ptr()
    return start, start + tensor.numel() * tensor.dtype.itemsize


def _overlaps(extent: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(extent[0] < end and start < extent[1] for start, end in others)
