# SPDX-License-Identifier: Apache-2.0
"""A module compiled, and timed in turns with what it is compared with, in one process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

import tvm_involution as ti


def compiled(module: nn.Module, *inputs: Tensor) -> tuple[ti.CompiledLibrary, ti.CompiledNetwork]:
    """Return `module` compiled for such inputs, untuned: the library, and the network that was loaded from it."""
    library = ti.compile((module, inputs))
    with tempfile.TemporaryDirectory() as folder:
        library.save(Path(folder) / "network.so")
        return library, ti.load(Path(folder) / "network.so")


def in_turns(
    calls: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> np.ndarray:
    """Return the milliseconds of `calls` (calls, rounds), which take turns."""
    times = np.empty((len(calls), rounds))
    for turn in range(rounds):
        for number, call in enumerate(calls):
            start = clock()
            call()
            times[number, turn] = 1e3 * (clock() - start)
    return times


def fastest(calls: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Return the milliseconds of the fastest of each, after a round that does not count."""
    return [float(least) for least in in_turns(calls, rounds + 1)[:, 1:].min(1)]
