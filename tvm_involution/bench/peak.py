# SPDX-License-Identifier: Apache-2.0
"""What this machine can do at most: a large matrix product and a large copy, measured on the spot."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

_SIDE = 2048
_COPIED_BYTES = 256 << 20
_TRIES = 5


@dataclass(frozen=True)
class Peak:
    """The machine's yardsticks, with all threads."""

    gflops: float
    """billion operations a second of the faster of numpy's and torch's matrix product in float32; of torch's in int8"""
    gbs: float
    """billion bytes a second that a copy reads and writes, between arrays that no cache holds"""


def measure_peak(dtype: str = "float32") -> Peak:
    """Measure; takes about a second.

    Args:
        dtype: `int8` for products of bytes, all others are measured against those of float32.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    torch_a, torch_b = torch.from_numpy(a), torch.from_numpy(b)
    if dtype == "int8":
        bytes_a, bytes_b = (rng.integers(-128, 128, (_SIDE, _SIDE), np.int8) for _ in range(2))
        torch_a, torch_b = torch.from_numpy(bytes_a), torch.from_numpy(bytes_b)
        product = _least(lambda: torch._int_mm(torch_a, torch_b))
    else:
        product = min(_least(lambda: a @ b), _least(lambda: torch_a @ torch_b))
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    copy = _least(lambda: target.copy_(source))
    return Peak(gflops=2 * _SIDE**3 / product / 1e9, gbs=2 * _COPIED_BYTES / copy / 1e9)


def _least(call: Callable[[], Any]) -> float:
    times = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
