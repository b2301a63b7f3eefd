# SPDX-License-Identifier: Apache-2.0
"""PyTorch's own samples of its operators: what is compiled is right, what is not compiled is refused in one line."""

from __future__ import annotations

import secrets

import numpy as np
import pytest
from operator_walk import OPERATORS, samples, walk


def _bad(names: list[str], at_most: int | None, seed: int, dtype: str = "float32") -> tuple[list[str], int]:
    """Return what was wrong or raw, and the number of samples that were right."""
    print(f"seed {seed}")
    verdicts = list(walk(samples(names, at_most, seed), dtype))
    bad = [f"{v.state}: {v.operator} {v.number} ({v.call}): {v.why}" for v in verdicts if v.state in ("wrong", "raw")]
    return bad, sum(v.state == "computed" for v in verdicts)


def test_some_samples():
    """One sample of every fourth operator, others in every run."""
    seed = secrets.randbits(31)
    names = [str(name) for name in np.random.default_rng(seed).choice(OPERATORS, len(OPERATORS) // 4, replace=False)]
    bad, right = _bad(names, 1, seed)
    assert not bad and right > len(names) // 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_some_samples_in_half_types(dtype):
    """One sample of every sixteenth operator, rounded, against float64."""
    seed = secrets.randbits(31)
    names = [str(name) for name in np.random.default_rng(seed).choice(OPERATORS, len(OPERATORS) // 16, replace=False)]
    bad, right = _bad(names, 1, seed, dtype)
    assert not bad and right > len(names) // 2


@pytest.mark.every_sample
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_sample(dtype):
    bad, right = _bad(OPERATORS, None, 0, dtype)
    assert not bad and right > 5000
