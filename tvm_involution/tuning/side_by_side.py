# SPDX-License-Identifier: Apache-2.0
"""The whole network, compiled without and with what was found, both run in turns: what tuning has brought."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.arrays import numpy_dtype
from ..runtime.network import CompiledNetwork, load

_WARM_UP, _LEAST_ROUNDS, _MOST_ROUNDS = 3, 5, 50


@dataclass(frozen=True)
class SideBySide:
    """Milliseconds of a call, by round."""

    default_ms: tuple[float, ...]
    tuned_ms: tuple[float, ...]

    @property
    def gain(self) -> float:
        """How many times faster the tuned network is: the ratio of the medians."""
        return statistics.median(self.default_ms) / statistics.median(self.tuned_ms)

    @property
    def spread(self) -> tuple[float, float]:
        """Between what half of the rounds' ratios lie."""
        ratios = [before / after for before, after in zip(self.default_ms, self.tuned_ms, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        return low, high


def run_side_by_side(compile_with: Callable[[Path], Any], logs: Path, seconds: float) -> SideBySide | None:
    """Compile and run both in turns.

    Args:
        compile_with: compiles the network with a folder of tuning logs.
        seconds: for everything; a compilation that has begun is not broken off.

    Returns:
        None where the time does not suffice.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tvm-involution-tune-") as folder:
        empty = Path(folder) / "none"
        empty.mkdir()
        networks: list[CompiledNetwork] = []
        for name, used in (("default", empty), ("tuned", logs)):
            if networks and 2 * (time.monotonic() - start) > seconds:
                return None
            path = Path(folder) / f"{name}.so"
            compile_with(used).save(path)
            networks.append(load(path))
        inputs = _random_inputs(networks[0])
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(_WARM_UP + _MOST_ROUNDS):
            for network, own in zip(networks, times, strict=True):
                begin = time.perf_counter()
                network(*inputs)
                if number >= _WARM_UP:
                    own.append((time.perf_counter() - begin) * 1e3)
            if len(times[0]) >= _LEAST_ROUNDS and time.monotonic() - start > seconds:
                break
    return SideBySide(tuple(times[0]), tuple(times[1]))


def _random_inputs(network: CompiledNetwork) -> list[np.ndarray]:
    """Return random inputs; whole numbers, which may be indices, are 0: any size has that index."""
    rng = np.random.default_rng()
    batch = network.metadata.batch_sizes[0]
    arrays = []
    for spec in network.metadata.inputs:
        shape = [batch if isinstance(d, str) else d for d in spec.shape]
        dtype = numpy_dtype(spec.dtype)
        whole = dtype.kind in "iub"
        arrays.append(np.zeros(shape, dtype) if whole else rng.standard_normal(shape).astype(dtype))
    return arrays
