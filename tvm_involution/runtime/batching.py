# SPDX-License-Identifier: Apache-2.0
"""Serve any batch with the batch sizes that a library has."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache


def split_batch(requested: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes to call, largest first, whose sum covers `requested`.

    Computes as few pictures as possible, then makes as few calls as possible; only the last call is padded.
    For sizes 1 and 8: 5 -> [1]*5, 17 -> [8, 8, 1]; for size 8 alone: 5 -> [8].
    """
    return list(_split(requested, tuple(sorted(sizes))))


@lru_cache(maxsize=256)
def _split(requested: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    largest = sizes[-1]
    # far above the largest size it is always the best: only the end needs a search
    bulk = max(0, requested // largest - largest)
    rest = requested - bulk * largest
    best: list[tuple[int, ...]] = [()]
    for count in range(1, rest + 1):
        options = [(size, *best[max(0, count - size)]) for size in sizes]
        best.append(min(options, key=lambda option: (sum(option), len(option))))
    return (largest,) * bulk + tuple(sorted(best[rest], reverse=True))
