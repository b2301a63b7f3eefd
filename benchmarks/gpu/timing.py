# SPDX-License-Identifier: Apache-2.0
"""How long something takes: one kernel by itself, or a call of a whole network.

Kernels are captured many times in a CUDA graph, which is launched between two events: so neither Python nor the driver
is in the time, and what a kernel costs in a network's own graph is. Every launch has other arrays, three times what the
second-level cache holds in all, so that each finds its inputs in memory.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .results import rounded

_REPLAYS = 10
_TARGET_MS, _MOST_LAUNCHES = 3.0, 400
_MOST_SETS, _CACHES = 512, 3
_TURN_SECONDS = 0.4
_ROOM = 16 << 30
"""bytes that all sets of arrays may take"""


@dataclass(frozen=True)
class Timing:
    """Microseconds of a launch."""

    median_us: float
    min_us: float
    how: str
    """`graph`: CUDA graph replays; `launches`: launch after launch; `clock`: the CPU's clock"""

    def fields(self) -> dict[str, float | str | None]:
        """Return what a row of results has of it."""
        return {"us": rounded(self.median_us), "min_us": rounded(self.min_us), "timed_by": self.how}


def sets_needed(bytes_per_set: int, device: str) -> int:
    """Return how many sets of arrays take turns."""
    if device == "cpu":
        return 2
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    wanted = -(-_CACHES * cache // max(1, bytes_per_set))
    return max(1, min(max(2, wanted), _MOST_SETS, _ROOM // max(1, bytes_per_set)))


def time_launches(launches: Sequence[Callable[[], object]], device: str) -> Timing:
    """Time a kernel (or a few that belong together).

    Args:
        launches: the same launch on other arrays, `sets_needed` times; they take turns.
    """
    if device == "cpu":
        return _by_clock(launches)
    torch.cuda.synchronize()  # arrays were filled on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches[:3]:  # loads code and fills pools of memory, which a capture must not
            launch()
        single_ms = _elapsed(lambda: [launch() for launch in launches[:3]], stream) / min(3, len(launches))
        count = max(len(launches), min(_MOST_LAUNCHES, int(_TARGET_MS / max(single_ms, 1e-4)) + 1))
        order = [launches[i % len(launches)] for i in range(count)]
        replay, how = _captured(order, stream)
        replay()
        times = [1e3 * _elapsed(replay, stream) / count for _ in range(_REPLAYS)]
    return Timing(statistics.median(times), min(times), how)


def _captured(order: Sequence[Callable[[], object]], stream: torch.cuda.Stream) -> tuple[Callable[[], object], str]:
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            for launch in order:
                launch()
    except Exception as error:  # what cannot be captured is launched
        print(f"not captured: {str(error).strip().splitlines()[-1:]}", flush=True)
        torch.cuda.synchronize()
        return lambda: [launch() for launch in order], "launches"
    return graph.replay, "graph"


def _elapsed(work: Callable[[], object], stream: torch.cuda.Stream) -> float:
    """Return the GPU's milliseconds from the beginning of `work` to its end."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    work()
    end.record(stream)
    end.synchronize()
    return start.elapsed_time(end)


def _by_clock(launches: Sequence[Callable[[], object]]) -> Timing:
    launches[0]()
    times = []
    for turn in range(5):
        start = time.perf_counter()
        launches[turn % len(launches)]()
        times.append(1e6 * (time.perf_counter() - start))
    return Timing(statistics.median(times), min(times), "clock")


@dataclass(frozen=True)
class Turn:
    """Some calls of a network."""

    busy_ms: float
    """of a call, called one after another without waiting: what the GPU takes, or Python where that is slower"""
    latency_ms: tuple[float, ...]
    """of single calls, each waited for"""


def time_calls(call: Callable[[], object], most: int, device: str) -> Turn:
    """Time calls together, `most` at most, and then a few alone; after one that is not counted."""
    count = max(2, min(most, int(_TURN_SECONDS / _seconds_alone(call, device))))
    if device == "cpu":
        alone = [_seconds_alone(call, device) for _ in range(count)]
        return Turn(1e3 * statistics.mean(alone), tuple(1e3 * value for value in alone))
    busy = _elapsed(lambda: [call() for _ in range(count)], torch.cuda.current_stream()) / count
    alone = [_seconds_alone(call, device) for _ in range(max(2, count // 4))]
    return Turn(busy, tuple(1e3 * value for value in alone))


def _seconds_alone(call: Callable[[], object], device: str) -> float:
    """Return the seconds of a call with all its work."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
