# SPDX-License-Identifier: Apache-2.0
"""The GPUs whose times are predicted, and their second-level caches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import UserError

_PIECE = 64 << 10
# what a GPU sustains of the rates below, from experience with such kernels
MEMORY_SHARE, CACHE_SHARE, TENSOR_SHARE, ISSUE_SHARE = 0.8, 0.85, 0.75, 0.6
LAUNCH_SECONDS = 1.3e-6
"""from the end of a kernel of a CUDA graph to the start of the next, both short"""


@dataclass(frozen=True)
class Card:
    """A GPU: rates of its data sheet, or measured where the data sheet does not say."""

    name: str
    architecture: str
    multiprocessors: int
    hertz: float
    memory: float
    """bytes a second of a copy"""
    cache: float
    """bytes a second from the second-level cache to the multiprocessors"""
    cache_bytes: int
    tensor: float
    """operations a second of `mma.sync` in half types with sums in float32"""


CARDS = (
    Card("H100", "sm_90a", 132, 1.70e9, 3.03e12, 5.5e12, 40 << 20, 600e12),
    Card("A100", "sm_80", 108, 1.41e9, 1.555e12, 4.0e12, 40 << 20, 312e12),
    Card("L4", "sm_89", 58, 2.04e9, 0.3e12, 1.7e12, 48 << 20, 121e12),
)


def card_of(name: str) -> Card:
    """Return a card by its name or architecture.

    Raises:
        UserError: none of that name.
    """
    for card in CARDS:
        if name.lower() in (card.name.lower(), card.architecture):
            return card
    known = ", ".join(f"{card.name} ({card.architecture})" for card in CARDS)
    raise UserError(f"no figures of a GPU {name!r}; name one of {known}")


class Cache:
    """A second-level cache that forgets what was used longest ago, in pieces of arrays."""

    def __init__(self, size: int):
        self._room = size // _PIECE
        self._held: OrderedDict[tuple[int, int], bool] = OrderedDict()

    def run(self, reads: Iterable[tuple[int, int]], writes: Iterable[tuple[int, int]]) -> int:
        """Return the bytes that a kernel moves to and from memory.

        Args:
            reads: storage and bytes of each array that it reads; all advance together.
            writes: the same of those that it writes.
        """
        pieces = [
            (storage, size, -(-size // _PIECE), written)
            for arrays, written in ((reads, False), (writes, True))
            for storage, size in arrays
        ]
        moved = 0
        steps = max((count for _, _, count, _ in pieces), default=0)
        for step in range(steps):
            for storage, size, count, written in pieces:
                for piece in range(step * count // steps, (step + 1) * count // steps):
                    moved += self._use(storage, piece, written, min(_PIECE, size))
        return moved

    def _use(self, storage: int, piece: int, written: bool, size: int) -> int:
        key, moved = (storage, piece), 0
        dirty = self._held.pop(key, None)
        if dirty is None:
            moved += 0 if written else size
            if len(self._held) >= self._room and self._held.popitem(last=False)[1]:
                moved += _PIECE
        self._held[key] = written or bool(dirty)
        return moved
