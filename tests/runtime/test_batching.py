# SPDX-License-Identifier: Apache-2.0
"""Any batch is served by the sizes that a library has, with the least work."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tvm_involution.runtime.batching import split_batch


@pytest.mark.parametrize(
    ("requested", "sizes", "expected"),
    [
        (5, (1, 8), [1] * 5),
        (8, (1, 8), [8]),
        (17, (1, 8), [8, 8, 1]),
        (5, (8,), [8]),
        (9, (8,), [8, 8]),
        (7, (3, 5), [5, 3]),
        (1000, (1, 128), [128] * 7 + [1] * 104),
        (10**6, (1, 8), [8] * 125_000),
    ],
)
def test_examples(requested: int, sizes: tuple[int, ...], expected: list[int]) -> None:
    assert split_batch(requested, sizes) == expected


def test_least_pictures_then_least_calls(rng: np.random.Generator) -> None:
    for _ in range(40):
        sizes = tuple(int(s) for s in sorted(rng.choice(np.arange(1, 8), size=rng.integers(1, 4), replace=False)))
        requested = int(rng.integers(1, 13))
        calls = split_batch(requested, sizes)
        every = (
            option
            for count in range(1, requested + 1)
            for option in itertools.combinations_with_replacement(sizes, count)
            if sum(option) >= requested
        )
        best = min((sum(option), len(option)) for option in every)
        assert (sum(calls), len(calls)) == best, (requested, sizes)
        assert set(calls) <= set(sizes)
        # only the last call has room for padding
        assert sum(calls[:-1]) < requested


def test_the_bulk_is_split_as_well_as_the_search_would(rng: np.random.Generator) -> None:
    sizes = tuple(int(s) for s in sorted(rng.choice(np.arange(2, 9), size=2, replace=False)))
    for requested in range(1, 150):
        pairs = [(a, -(-max(0, requested - a * sizes[0]) // sizes[1])) for a in range(requested // sizes[0] + 2)]
        best = min((a * sizes[0] + b * sizes[1], a + b) for a, b in pairs)
        calls = split_batch(requested, sizes)
        assert (sum(calls), len(calls)) == best, (requested, sizes)
