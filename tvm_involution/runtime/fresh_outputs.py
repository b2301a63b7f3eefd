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

    def __init__(self, input_bytes: Sequence[int], output_bytes: Sequence[int]) -> None:
        """Take how many bytes a number of each input and output has."""
        self._input_bytes, self._output_bytes = input_bytes, output_bytes
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
            held = _extents(known, self._output_bytes)
            made = _extents(results, self._output_bytes)
            self._known = kept = frozenset(i for i, extent in enumerate(made) if _overlaps(extent, held))
        else:
            kept = known
        taken = _extents(inputs, self._input_bytes)
        fresh = []
        for number, extent in enumerate(_extents(results, self._output_bytes)):
            fresh.append(number not in kept and not _overlaps(extent, taken))
            taken.append(extent)
        return fresh


def _extents(tensors: Iterable[Any], item_bytes: Sequence[int]) -> list[tuple[int, int]]:
    """Return the addresses of the first byte of contiguous tensors, and of the first behind each."""
    starts = [(tensor.data_ptr(), tensor.numel()) for tensor in tensors]
    return [(start, start + count * size) for (start, count), size in zip(starts, item_bytes, strict=True)]


def _overlaps(extent: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(extent[0] < end and start < extent[1] for start, end in others)
