# SPDX-License-Identifier: Apache-2.0
"""Build candidates and time them, here or on devices registered at a TVM RPC tracker.

Each candidate is built and run in another process with a time limit, so one that crashes or hangs costs itself alone.
Here nothing is built while something is timed: kernels run on all cores, and their times would be those of a busy
machine.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tvm
from tvm import rpc, s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

from .. import lowering
from ..lowering.link import export_library, linker_of
from ..runtime.arrays import numpy_dtype
from ..runtime.threads import physical_cores, run_on_pool
from .clock import Clock
from .fleet import WAIT_SECONDS, LostDeviceError, RpcTracker
from .workers import Workers

BUILD_SECONDS, RUN_SECONDS = 60.0, 30.0
# of the same at the end of a budget of minutes: more than what does not hang takes
_LAST_SECONDS = 5.0
_RANDOM_FILL = "tvm.contrib.random.random_fill_for_measure"
# a worker that builds leaks a little
_USES = 300
# a candidate this many times slower than the fastest so far is timed no more, by the times that it has been
_HOPELESS = (2.0, 1.2)
# on a fleet: devices that a candidate may cost, and failures that make one
_TRIES = 2


@dataclass(frozen=True)
class Candidate:
    """A schedule to measure, and the arguments its program takes."""

    schedule: s_tir.Schedule
    args_info: Sequence[ms.arg_info.ArgInfo]
    limit: float = float("inf")
    """seconds of the fastest so far: who is far above it is timed less often"""
    artifact: Path | None = None
    """the shared object, where it has been built"""


@dataclass(frozen=True)
class Measurement:
    """What came of a candidate: its seconds, or why there are none."""

    seconds: float | None
    error: str | None = None
    artifact: Path | None = None
    """the shared object, until the measurer is closed"""
    rounds: tuple[float, ...] = ()
    """the seconds of each round"""
    lost: bool = False
    """whether it was not judged, because the devices that it ran on went, or the run's time"""


class Measurer:
    """Builds and times candidates for `target`; a context manager that removes what it built."""

    def __init__(
        self,
        target: tvm.target.Target,
        tracker: RpcTracker | None = None,
        repeat: int = 5,
        clock: Clock | None = None,
        minutes: float = math.inf,
    ) -> None:
        """Start the worker processes.

        Args:
            repeat: how often a candidate is timed, at least 10 ms each; the median counts.
            clock: told what the time goes into.
            minutes: of the clock, after which what hangs is not waited for.

        Raises:
            UserError: no device is registered at the tracker.
        """
        self._target, self._tracker, self._repeat = target, tracker, repeat
        self._clock, self._end = clock or Clock(), minutes * 60
        self._device = "cuda" if target.kind.name == "cuda" else "cpu"
        self._cores = int(target.attrs.get("num-cores") or 0)
        self._numbers = itertools.count()
        self._linker = linker_of(target)
        devices = 1 if tracker is None else tracker.check()
        self._folder = Path(tempfile.mkdtemp(prefix="tvm-involution-tune-"))
        # MetaSchedule's LocalBuilder starts its workers anew for each batch, which takes longer than the builds
        self._builders = Workers(physical_cores(), _USES)
        self._runners = Workers(devices)
        self._builders.warm_up(_ready)
        self._runners.warm_up(_ready)

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._builders.close()
        self._runners.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def measure(self, candidates: Sequence[Candidate], rounds: int = 1) -> list[Measurement]:
        """Build the candidates, then time them all, `rounds` times in turn; the fastest round counts.

        Raises:
            UserError: no device is left at the tracker.
        """
        with self._clock.spent_in("build"):
            results = self._build(candidates)
        with self._clock.spent_in("time"):
            runnable = [i for i, result in enumerate(results) if result.artifact is not None]
            for _ in range(rounds):
                self._time(runnable, candidates, results)
        return results

    def _build(self, candidates: Sequence[Candidate]) -> list[Measurement]:
        results = [Measurement(None, artifact=candidate.artifact) for candidate in candidates]
        missing = [i for i, candidate in enumerate(candidates) if candidate.artifact is None]
        jobs = [
            (candidates[i].schedule.mod, self._target, str(self._folder / str(next(self._numbers))), self._linker)
            for i in missing
        ]
        limit = self._limit(BUILD_SECONDS)
        for i, built in zip(missing, self._builders.map(_build, jobs, limit), strict=True):
            if isinstance(built, BaseException):
                lost = limit < BUILD_SECONDS and isinstance(built, TimeoutError)
                results[i] = Measurement(None, f"build: {_brief(built)}", lost=lost)
            else:
                results[i] = Measurement(None, artifact=Path(built))
        return results

    def _limit(self, seconds: float) -> float:
        """Return the seconds that a candidate may take: `seconds`, but little more than the run has left."""
        return min(seconds, max(_LAST_SECONDS, self._end - self._clock.elapsed))

    def _time(self, numbers: list[int], candidates: Sequence[Candidate], results: list[Measurement]) -> None:
        jobs = {}
        for i in numbers:
            info = [info.as_json() for info in candidates[i].args_info]
            jobs[i] = (str(results[i].artifact), self._device, info, self._repeat, candidates[i].limit)
        for i, outcome in self._run(_time, jobs).items():
            before = results[i]
            if isinstance(outcome, BaseException):
                cut = self._limit(RUN_SECONDS) < RUN_SECONDS and isinstance(outcome, TimeoutError)
                lost = cut or isinstance(outcome, LostDeviceError)
                results[i] = replace(before, error=_brief(outcome), lost=lost and before.seconds is None)
            else:
                median = float(np.median(outcome))
                fastest = min(median, before.seconds or median)
                results[i] = replace(before, seconds=fastest, error=None, rounds=(*before.rounds, median))

    def _run(self, function: Callable[..., Any], jobs: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Return what `function(session, *job)`, called in a worker, returns or ends in, for each of `jobs`.

        On a fleet what a device takes with it is done again on another, and what fails is tried once more.
        """
        if self._tracker is None:
            here = [(function, None, 0, *job) for job in jobs.values()]
            return dict(zip(jobs, self._runners.map(_here, here, self._limit(RUN_SECONDS)), strict=True))
        outcomes: dict[int, Any] = {}
        lost, failed = dict.fromkeys(jobs, 0), dict.fromkeys(jobs, 0)
        waiting = list(jobs)
        while waiting:
            self._tracker.check()
            remote = [(self._tracker, int(RUN_SECONDS), function, self._cores, *jobs[i]) for i in waiting]
            limit = WAIT_SECONDS + 2 * RUN_SECONDS
            for i, outcome in zip(waiting, self._runners.map(_there, remote, limit, self._look), strict=True):
                outcomes[i] = outcome
                lost[i] += isinstance(outcome, LostDeviceError)
                failed[i] += isinstance(outcome, BaseException) and not isinstance(outcome, LostDeviceError)
            waiting = [
                i for i in waiting if isinstance(outcomes[i], BaseException) and max(lost[i], failed[i]) < _TRIES
            ]
        return outcomes

    def _look(self) -> None:
        assert self._tracker is not None
        self._tracker.check()

    def run_once(self, artifact: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run a built candidate on `arrays` (inputs and outputs) and return what they hold afterwards.

        Raises:
            LostDeviceError: the devices that it ran on went.
            RuntimeError, TimeoutError: it crashed or took too long.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "arrays.npz"
            np.savez(path, *[array.view(np.uint16) if array.dtype.itemsize == 2 else array for array in arrays])
            dtypes = [str(array.dtype) for array in arrays]
            outcome = self._run(_run_once, {0: (str(artifact), self._device, str(path), dtypes)})[0]
            if isinstance(outcome, BaseException):
                raise outcome
            with np.load(outcome) as stored:
                return [stored[name].view(array.dtype) for name, array in zip(stored.files, arrays, strict=True)]


def _brief(message: object) -> str:
    lines = [line for line in str(message).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(message).__name__


# What follows runs in the worker processes.


def _ready() -> None:
    """Nothing: that this module is there is enough."""


def _build(mod: tvm.IRModule, target: tvm.target.Target, folder: str, linker: list[str]) -> str:
    # as MetaSchedule's default_build, which also imports the tensor intrinsics of all architectures: 40 s a worker
    executable = lowering.build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod), target)
    os.makedirs(folder)
    path = os.path.join(folder, "candidate.so")
    export_library(executable, target, path, linker)
    return path


def _here(function: Callable[..., Any], session: None, cores: int, *job: Any) -> Any:
    return run_on_pool(function, session, *job)


def _there(tracker: RpcTracker, seconds: int, function: Callable[..., Any], cores: int, *job: Any) -> Any:
    def call(session: rpc.RPCSession) -> Any:
        if cores:
            session.get_function("runtime.config_threadpool")(1, cores)
        return function(session, *job)

    return tracker.use(call, seconds)


def _load(session: rpc.RPCSession | None, artifact: str, kind: str) -> tuple[tvm.runtime.Module, tvm.runtime.Device]:
    if session is None:
        return tvm.runtime.load_module(artifact), tvm.device(kind, 0)
    session.upload(artifact)
    return session.load_module(Path(artifact).name), session.device(kind, 0)


def _time(
    session: rpc.RPCSession | None, artifact: str, kind: str, args_info: Any, repeat: int, limit: float
) -> list[float]:
    """Return the seconds of a candidate, `repeat` of them, or fewer where they are all far above `limit`."""
    module, device = _load(session, artifact, kind)
    find = tvm.get_global_func if session is None else session.get_function
    (arguments,) = _allocate(find(_RANDOM_FILL), device, args_info)

    def timed(times: int) -> list[float]:
        config = ms.runner.EvaluatorConfig(number=1, repeat=times, min_repeat_ms=10)
        return ms.runner.utils.run_evaluator_common(module, device, config, [arguments])

    seconds: list[float] = []
    for factor in _HOPELESS:
        seconds += timed(1)
        if min(seconds) > factor * limit or len(seconds) == repeat:
            return seconds
    return seconds + timed(repeat - len(seconds))


def _allocate(
    random_fill: Callable[[tvm.runtime.Tensor], None], device: tvm.runtime.Device, info: Any
) -> list[list[tvm.runtime.Tensor]]:
    """Return arguments with random numbers; whole ones, which may be indices, are 0: any size has that index."""

    def fill(tensor: tvm.runtime.Tensor) -> None:
        dtype = numpy_dtype(str(tensor.dtype))
        if dtype.kind in "iub":
            tensor.copyfrom(np.zeros(tensor.shape, dtype))
        else:
            random_fill(tensor)

    return ms.runner.utils.alloc_argument_common(fill, device, info, 1)


def _run_once(session: rpc.RPCSession | None, artifact: str, kind: str, path: str, dtypes: list[str]) -> str:
    with np.load(path) as stored:
        arrays = [stored[name] for name in stored.files]
    module, device = _load(session, artifact, kind)
    tensors = []
    for array, dtype in zip(arrays, dtypes, strict=True):
        tensor = tvm.runtime.empty(array.shape, dtype, device)
        tensor.copyfrom(array.view(numpy_dtype(dtype)))
        tensors.append(tensor)
    module["main"](*tensors)
    outputs = [tensor.numpy() for tensor in tensors]
    results = f"{path}.results.npz"  # the inputs stay for another try
    np.savez(results, *[array.view(np.uint16) if array.dtype.itemsize == 2 else array for array in outputs])
    return results
