# SPDX-License-Identifier: Apache-2.0
"""Build candidates and time them, here or on devices registered at a TVM RPC tracker.

Builder and runners are MetaSchedule's: each candidate is built and run in another process with a time limit, so one
that crashes or hangs costs itself alone.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import tvm
from tvm import rpc, s_tir
from tvm.s_tir import meta_schedule as ms
from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock
from tvm.support.popen_pool import PopenPoolExecutor, StatusKind

from .. import lowering
from ..errors import UserError
from ..lowering.link import export_library, linker_of
from ..runtime.arrays import numpy_dtype
from ..runtime.threads import physical_cores, run_on_pool

BUILD_SECONDS, RUN_SECONDS = 60.0, 30.0
_CONNECT_SECONDS = 20
_RANDOM_FILL = "tvm.contrib.random.random_fill_for_measure"
# a worker that builds leaks a little
_USES = 300


@dataclass(frozen=True)
class Candidate:
    """A schedule to measure, and the arguments its program takes."""

    schedule: s_tir.Schedule
    args_info: Sequence[ms.arg_info.ArgInfo]


@dataclass(frozen=True)
class Measurement:
    """What came of a candidate: its seconds, or why there are none."""

    seconds: float | None
    error: str | None = None
    artifact: Path | None = None
    """the shared object, until the measurer is closed"""


@dataclass(frozen=True)
class RpcTracker:
    """Devices elsewhere: a tracker's address and the key under which the devices are registered."""

    host: str
    port: int
    key: str

    def config(self) -> ms.runner.RPCConfig:
        """Return it as MetaSchedule's runner wants it."""
        return ms.runner.RPCConfig(self.host, self.port, self.key, session_timeout_sec=int(RUN_SECONDS))

    def servers(self) -> int:
        """Return how many devices are registered.

        Raises:
            UserError: the tracker cannot be reached.
        """
        try:
            # TVM's client goes on trying for a minute
            socket.create_connection((self.host, self.port), timeout=5).close()
            summary = rpc.connect_tracker(self.host, self.port).summary()
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"no RPC tracker at {self.host}:{self.port}; start one with `python -m tvm.exec.rpc_tracker --host "
                f"0.0.0.0 --port {self.port}`"
            ) from error
        return sum(item["key"].split(":", 1)[-1] == self.key for item in summary["server_info"])


class Measurer:
    """Builds and times candidates for `target`; a context manager that removes what it built."""

    def __init__(self, target: tvm.target.Target, tracker: RpcTracker | None = None, repeat: int = 5) -> None:
        """Start the worker processes.

        Args:
            repeat: how often a candidate is timed, at least 10 ms each; the median counts.

        Raises:
            UserError: no device is registered at the tracker.
        """
        self._target, self._tracker = target, tracker
        self._device = "cuda" if target.kind.name == "cuda" else "cpu"
        self._numbers = itertools.count()
        self._folder = Path(tempfile.mkdtemp(prefix="tvm-involution-tune-"))
        # MetaSchedule's LocalBuilder starts its workers anew for each batch, which takes longer than the builds
        self._builders = PopenPoolExecutor(
            physical_cores(), timeout=BUILD_SECONDS, maximum_process_uses=_USES, stderr=subprocess.DEVNULL
        )
        self._linker = linker_of(target)
        config = ms.runner.EvaluatorConfig(number=1, repeat=repeat, min_repeat_ms=10)
        self._pool = PopenPoolExecutor(1, timeout=RUN_SECONDS, stderr=subprocess.DEVNULL)
        if tracker is None:
            self._runner = ms.runner.LocalRunner(
                timeout_sec=RUN_SECONDS,
                evaluator_config=config,
                f_alloc_argument=_allocate,
                f_run_evaluator=_evaluate,
            )
        else:
            servers = tracker.servers()
            if not servers:
                raise UserError(_no_servers(tracker))
            self._runner = ms.runner.RPCRunner(
                rpc_config=tracker.config(),
                evaluator_config=config,
                max_workers=servers,
                f_create_session=_connect,
                f_alloc_argument=_allocate_remotely,
                f_run_evaluator=partial(_evaluate_remotely, int(target.attrs.get("num-cores") or 0)),
            )

    def __enter__(self) -> Measurer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def measure(self, candidates: Sequence[Candidate], rounds: int = 1) -> list[Measurement]:
        """Build the candidates, then time them all, `rounds` times in turn; the fastest round counts.

        Raises:
            UserError: no device is left at the tracker.
        """
        jobs = [
            (candidate.schedule.mod, self._target, str(self._folder / str(next(self._numbers))), self._linker)
            for candidate in candidates
        ]
        built = self._builders.map_with_error_catching(lambda job: _build(*job), jobs)
        results = [
            Measurement(None, None, Path(build.value))
            if build.status == StatusKind.COMPLETE
            else Measurement(None, f"build: {_brief(build.value)}")
            for build in built
        ]
        runnable = [i for i, result in enumerate(results) if result.artifact is not None]
        for _ in range(rounds):
            self._run(runnable, candidates, results)
            if self._tracker is not None:
                # a device that is taken away in the middle of a measurement is no fault of the candidate
                self._run([i for i in runnable if results[i].seconds is None], candidates, results)
        return results

    def _run(self, numbers: list[int], candidates: Sequence[Candidate], results: list[Measurement]) -> None:
        if not numbers:
            return
        if self._tracker is not None and not self._tracker.servers():
            raise UserError(_no_servers(self._tracker))
        inputs = [
            ms.runner.RunnerInput(str(results[i].artifact), self._device, list(candidates[i].args_info))
            for i in numbers
        ]
        for i, future in zip(numbers, self._runner.run(inputs), strict=True):
            result, before = future.result(), results[i]
            if result.error_msg is not None:
                results[i] = replace(before, error=_brief(result.error_msg))
            else:
                median = float(np.median([float(value) for value in result.run_secs]))
                results[i] = replace(before, seconds=min(median, before.seconds or median), error=None)

    def run_once(self, artifact: Path, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run a built candidate on `arrays` (inputs and outputs) and return what they hold afterwards.

        Raises:
            RuntimeError, TimeoutError: it crashed or took too long.
        """
        tracker = None if self._tracker is None else self._tracker.config()
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / "arrays.npz"
            np.savez(path, *[array.view(np.uint16) if array.dtype.itemsize == 2 else array for array in arrays])
            dtypes = [str(array.dtype) for array in arrays]
            self._pool.submit(_run_once, str(artifact), self._device, str(path), dtypes, tracker).result()
            with np.load(path) as stored:
                return [stored[name].view(array.dtype) for name, array in zip(stored.files, arrays, strict=True)]


def _no_servers(tracker: RpcTracker) -> str:
    return (
        f"no device with key {tracker.key!r} at the tracker {tracker.host}:{tracker.port}; start one with `python -m "
        f"tvm.exec.rpc_server --tracker {tracker.host}:{tracker.port} --key {tracker.key}`; what was measured is safe, "
        "and the same command goes on"
    )


def _brief(message: object) -> str:
    lines = [line for line in str(message).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "unknown error"


# What follows runs in the worker processes.


def _build(mod: tvm.IRModule, target: tvm.target.Target, folder: str, linker: list[str]) -> str:
    # as MetaSchedule's default_build, which also imports the tensor intrinsics of all architectures: 40 s a worker
    executable = lowering.build(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(mod), target)
    os.makedirs(folder)
    path = os.path.join(folder, "candidate.so")
    export_library(executable, target, path, linker)
    return path


def _allocate(device: tvm.runtime.Device, info: Any, repeat: int) -> list[list[tvm.runtime.Tensor]]:
    return _fill(tvm.get_global_func(_RANDOM_FILL), device, info, repeat)


def _allocate_remotely(
    session: rpc.RPCSession, device: tvm.runtime.Device, info: Any, repeat: int
) -> list[list[tvm.runtime.Tensor]]:
    return _fill(session.get_function(_RANDOM_FILL), device, info, repeat)


def _fill(
    random_fill: Callable[[tvm.runtime.Tensor], None], device: tvm.runtime.Device, info: Any, repeat: int
) -> list[list[tvm.runtime.Tensor]]:
    """Return arguments with random numbers; whole ones, which may be indices, are 0: any size has that index."""

    def fill(tensor: tvm.runtime.Tensor) -> None:
        dtype = numpy_dtype(str(tensor.dtype))
        if dtype.kind in "iub":
            tensor.copyfrom(np.zeros(tensor.shape, dtype))
        else:
            random_fill(tensor)

    return ms.runner.utils.alloc_argument_common(fill, device, info, repeat)


def _evaluate(
    module: tvm.runtime.Module,
    device: tvm.runtime.Device,
    config: ms.runner.EvaluatorConfig,
    arguments: list[list[tvm.runtime.Tensor]],
) -> list[float]:
    return run_on_pool(ms.runner.utils.run_evaluator_common, module, device, config, arguments)


def _evaluate_remotely(
    cores: int,
    session: rpc.RPCSession,
    module: tvm.runtime.Module,
    device: tvm.runtime.Device,
    config: ms.runner.EvaluatorConfig,
    arguments: list[list[tvm.runtime.Tensor]],
) -> list[float]:
    if cores:
        session.get_function("runtime.config_threadpool")(1, cores)
    return ms.runner.utils.run_evaluator_common(module, device, config, arguments)


def _connect(config: ms.runner.RPCConfig) -> rpc.RPCSession:
    """Connect to a device; the tracker's queue has no time limit of its own."""
    found: list[rpc.RPCSession] = []
    thread = threading.Thread(target=lambda: found.append(config.connect_server()), daemon=True)
    thread.start()
    thread.join(RUN_SECONDS + _CONNECT_SECONDS)
    if not found:
        raise TimeoutError(f"no device with key {config.tracker_key!r} is free")
    return found[0]


def _run_once(artifact: str, kind: str, path: str, dtypes: list[str], tracker: ms.runner.RPCConfig | None) -> None:
    with np.load(path) as stored:
        arrays = [stored[name] for name in stored.files]
    if tracker is None:
        module, device = tvm.runtime.load_module(artifact), tvm.device(kind, 0)
    else:
        session = _connect(tracker)
        session.upload(artifact)
        module, device = session.load_module(Path(artifact).name), session.device(kind, 0)
    tensors = []
    for array, dtype in zip(arrays, dtypes, strict=True):
        tensor = tvm.runtime.empty(array.shape, dtype, device)
        tensor.copyfrom(array.view(numpy_dtype(dtype)))
        tensors.append(tensor)
    function = module["main"]
    if tracker is None:
        run_on_pool(function, *tensors)
    else:
        function(*tensors)
    outputs = [tensor.numpy() for tensor in tensors]
    np.savez(path, *[array.view(np.uint16) if array.dtype.itemsize == 2 else array for array in outputs])
