# SPDX-License-Identifier: Apache-2.0
"""`tune`: search the schedules of a network's tensor programs for a target, and keep the best."""

from __future__ import annotations

import datetime
import fcntl
import importlib.util
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from ..arguments import UNCHECKED, Size, checked
from ..errors import UserError
from ..frontend.network import Network, resolve_network
from ..records.database import FAILED, TuningDatabase, exists, seconds, write_best
from ..records.folders import user_folder
from ..records.manifest import Manifest, TunedNetwork, writable_manifest
from ..runtime.machine import architecture, cpu_name, missing_features
from ..runtime.threads import physical_cores, thread_count
from ..runtime.tvm_runtime import tvm_version
from ..target import as_target, cpu_features, gpu_problem, target_key
from .measure import Candidate, Measurement, Measurer, RpcTracker
from .scheduler import TaskState, next_state
from .tasks import TuningTask, extract_tasks, search_context
from .verify import Verifier

DEFAULT_TRIALS = 2000
MEASURED = "measured"
"""folder of everything that was measured, inside the target's folder of logs"""
_BATCH = 24
# the best databases are written this often, so that a killed run leaves most of what it found to `compile`
_CHECKPOINT_SECONDS = 60.0
# how many of a task's best are measured again, side by side with the default, before one is kept
_FINALISTS, _FINAL_ROUNDS = 3, 3


@dataclass
class TuningProgress:
    """Where a run stands; handed to `progress` whenever it changes."""

    phase: str
    states: list[TaskState]
    trials: int
    """measured so far, by earlier runs too"""
    max_trials: int | None
    started: float
    """`time.monotonic()` of the start"""
    minutes: float | None
    folder: Path

    def network_seconds(self, tuned: bool) -> float:
        """Return the sum over the kernels of a network, with defaults or with the best so far."""
        times = ((state.best if tuned else state.default_seconds, state.task.calls) for state in self.states)
        return sum((value or 0.0) * calls for value, calls in times)

    @property
    def minutes_left(self) -> float | None:
        """The minutes of the budget that are left, None where there is no such budget."""
        if self.minutes is None:
            return None
        return max(0.0, self.minutes - (time.monotonic() - self.started) / 60)


@checked
def tune(
    model: Annotated[str | Path | torch.nn.Module | tuple[torch.nn.Module, Any], UNCHECKED],
    target: str | tvm.target.Target = "llvm",
    *,
    trials: int | None = None,
    minutes: float | None = None,
    batch: Size | None = None,
    dtype: str | None = None,
    image_size: tuple[Size, Size] | None = None,
    log_dir: str | Path | None = None,
    rpc: str | None = None,
    rpc_key: str | None = None,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> TuningProgress:
    """Tune a network's kernels for a target; `compile` uses what is found.

    Killed, it loses the measurement in flight; called again, it goes on where it was.

    Args:
        model, batch, dtype, image_size: as `compile` takes them.
        target: `llvm` (this CPU), `cuda` (this GPU), a tag or JSON that `tvm.target.Target` takes, or a target.
        trials: candidates to measure, those of earlier runs for the same kernels included; 2000 where neither this nor
            `minutes` is given.
        minutes: time to spend in this call.
        log_dir: folder of tuning logs, a folder a target in it; by default the user's own, which `compile` looks in.
        rpc: `HOST:PORT` of a TVM RPC tracker whose devices measure in place of this machine.
        rpc_key: the key under which these devices are registered.
        progress: told where the run stands, after each step.

    Returns:
        How it ended; the times of `states` are those of the last, side-by-side measurement.

    Raises:
        UserError: whatever is wrong with the arguments, a full disk, no device: what was measured before is kept.
    """
    _check_installed()
    thread_count()
    resolved = as_target(target)
    tracker = _tracker(rpc, rpc_key)
    if trials is None and minutes is None:
        trials = DEFAULT_TRIALS
    if (trials is not None and trials < 1) or (minutes is not None and not 0 < minutes < math.inf):
        raise UserError(f"the budget must be positive, got trials={trials}, minutes={minutes}; for example trials=1000")
    if tracker is None:
        thread_count()  # else every candidate would fail by what is wrong with TVM_NUM_THREADS
        _check_measurable(resolved)
    folder = (Path(log_dir) if log_dir is not None else user_folder()) / target_key(resolved)
    network = resolve_network(model, image_size=image_size)
    (size,) = network.batch_sizes(batch)
    wanted = network.resolve_dtype(dtype)
    tasks = extract_tasks(network, resolved, batch=size, dtype=wanted)
    with _exclusive(folder / MEASURED):
        # before there are records, so that none is ever without
        _manifest(folder, resolved).write(folder)
        database = TuningDatabase(folder / MEASURED)
        states = [_resumed(task, database) for task in tasks]
        done = sum(len(state.history) for state in states)
        run = TuningProgress("measure defaults", states, done, trials, time.monotonic(), minutes, folder)
        with _log_file(folder / MEASURED / "tuning.log") as logger, Measurer(resolved, tracker) as measurer:
            search = _Search(run, database, measurer, logger, progress)
            try:
                search.measure_defaults()
                search.spend_budget()
                search.play_off()
            finally:
                # Ctrl-C and a full disk come here too
                search.write(_entry(network, size, wanted, run))
    run.phase = "done"
    progress(run)
    return run


class _Search:
    """One run: its tasks, what it measures with, where it writes."""

    def __init__(
        self,
        run: TuningProgress,
        database: TuningDatabase,
        measurer: Measurer,
        logger: logging.Logger,
        progress: Callable[[TuningProgress], None],
    ) -> None:
        self._run, self._database, self._measurer, self._logger = run, database, measurer, logger
        self._progress = progress
        self._cost_model = ms.cost_model.XGBModel(num_warmup_samples=32, num_tuning_cores=physical_cores())
        self._contexts: dict[str, ms.TuneContext] = {}
        self._verifiers: dict[str, Verifier] = {}
        # side-by-side results by the task's name, which replace what was measured before
        self._final: dict[str, list[ms.database.TuningRecord]] = {}
        self._written = time.monotonic()

    def measure_defaults(self) -> None:
        """Measure what runs where nothing is tuned, of the tasks for which no earlier run did."""
        self._progress(self._run)
        missing = [state for state in self._run.states if state.default_seconds is None]
        for start in range(0, len(missing), _BATCH):
            states = missing[start : start + _BATCH]
            candidates = [Candidate(state.task.default, state.task.args_info) for state in states]
            for state, result in zip(states, self._measurer.measure(candidates), strict=True):
                state.default_seconds = result.seconds
                self._record(state.task, state.task.default, result)
            self._progress(self._run)

    def spend_budget(self) -> None:
        """Search, task by task, until the budget is spent or nothing improves."""
        self._run.phase = "search"
        for known in self._run.states:
            if not known.task.spaces:
                known.stopped = "no space"
        while (left := self._trials_left()) > 0 and (state := next_state(self._run.states)) is not None:
            try:
                self._step(state, min(left, _BATCH))
            except (RuntimeError, ValueError, TypeError) as error:  # one task never stops another
                if isinstance(error, UserError):
                    raise
                self._logger.exception("task %s stopped", state.task.name)
                state.stopped = f"MetaSchedule failed: {str(error).strip().splitlines()[0]}"[:100]
            self._progress(self._run)
            if time.monotonic() - self._written > _CHECKPOINT_SECONDS:
                self.write(None)

    def _trials_left(self) -> int:
        left = self._run.minutes_left
        if left is not None and left <= 0:
            return 0
        return _BATCH if self._run.max_trials is None else self._run.max_trials - self._run.trials

    def _step(self, state: TaskState, size: int) -> None:
        context = self._context(state)
        schedules = self._new_candidates(state, context)[:size]
        if not schedules:
            state.stopped = "space exhausted"
            return
        candidates = [Candidate(candidate.sch, state.task.args_info) for candidate in schedules]
        results = self._measurer.measure(candidates)
        results = self._without_wrong_winners(state, results)
        for candidate, result in zip(schedules, results, strict=True):
            self._record(state.task, candidate.sch, result)
            state.history.append(FAILED if result.seconds is None else result.seconds)
        self._run.trials += len(results)
        if state.best is not None:
            state.batch_bests.append(state.best)
        runner_results = [
            ms.runner.RunnerResult([FAILED if result.seconds is None else result.seconds], None) for result in results
        ]
        context.search_strategy.notify_runner_results(schedules, runner_results)
        self._cost_model.update(context, schedules, runner_results)

    def _context(self, state: TaskState) -> ms.TuneContext:
        key = state.task.name
        if key not in self._contexts:
            context = search_context(state.task, self._logger, physical_cores())
            context.pre_tuning(100_000, _BATCH, state.task.spaces, self._database.memory, self._cost_model)
            self._contexts[key] = context
            self._learn(state, context)
        return self._contexts[key]

    def _learn(self, state: TaskState, context: ms.TuneContext) -> None:
        """Teach the cost model what earlier runs measured."""
        candidates, results = [], []
        for record in self._database.records(state.task.mod)[: 4 * _BATCH]:
            sch = s_tir.Schedule(state.task.mod)
            try:
                record.trace.apply_to_schedule(sch, remove_postproc=False)
            except (RuntimeError, ValueError):
                continue
            candidates.append(ms.MeasureCandidate(sch, record.args_info))
            results.append(ms.runner.RunnerResult([seconds(record)], None))
        if len(candidates) > 1:
            self._cost_model.update(context, candidates, results)

    def _new_candidates(self, state: TaskState, context: ms.TuneContext) -> list[ms.MeasureCandidate]:
        """Return candidates that no run has measured, none where the space is exhausted."""
        known = {_trace_text(record.trace) for record in self._database.records(state.task.mod)}
        for _ in range(5):
            found = context.generate_measure_candidates()
            if found is None:
                break
            fresh = [candidate for candidate in found if _trace_text(candidate.sch.trace) not in known]
            if fresh:
                return fresh
        return []

    def _without_wrong_winners(self, state: TaskState, results: list[Measurement]) -> list[Measurement]:
        """Check those that would be the task's best, the fastest first, until one is right."""
        results = list(results)
        best = state.best if state.best is not None else float("inf")
        order = sorted((result.seconds, i) for i, result in enumerate(results) if result.seconds is not None)
        for value, i in order:
            if value >= best:
                break
            results[i] = self._checked(state, results[i])
            if results[i].seconds is not None:
                break
        return results

    def _checked(self, state: TaskState, result: Measurement) -> Measurement:
        """Return `result`, or a failure where the candidate computes something else than its program."""
        assert result.artifact is not None
        verifier = self._verifiers.setdefault(state.task.name, Verifier(state.task))
        wrong = verifier.error(self._measurer, result.artifact)
        return result if wrong is None else Measurement(None, wrong, result.artifact)

    def play_off(self) -> None:
        """Measure each task's best again, side by side with the default: a lucky measurement must not win."""
        self._run.phase = "compare the best with the defaults"
        self._progress(self._run)
        contests: list[tuple[TaskState, s_tir.Schedule]] = []
        for state in self._run.states:
            if not any(value < (state.default_seconds or FAILED) for value in state.history):
                continue
            own = _trace_text(state.task.default.trace)
            contests.append((state, state.task.default))
            for record in self._database.records(state.task.mod)[: _FINALISTS + 1]:
                if seconds(record) < FAILED and _trace_text(record.trace) != own:
                    sch = s_tir.Schedule(state.task.mod)
                    record.trace.apply_to_schedule(sch, remove_postproc=False)
                    contests.append((state, sch))
        for start in range(0, len(contests), 2 * _BATCH):
            part = contests[start : start + 2 * _BATCH]
            candidates = [Candidate(sch, state.task.args_info) for state, sch in part]
            for (state, sch), result in zip(part, self._measurer.measure(candidates, _FINAL_ROUNDS), strict=True):
                if sch is not state.task.default and result.seconds is not None:
                    result = self._checked(state, result)
                if result.seconds is None:
                    self._logger.info("%s: %s", state.task.name, result.error)
                    continue
                self._final.setdefault(state.task.name, []).append(self._database_record(state.task, sch, result))
                if sch is state.task.default:
                    state.default_seconds = result.seconds
            self._progress(self._run)
        for state in self._run.states:
            if state.task.name in self._final:
                state.final_seconds = min(seconds(record) for record in self._final[state.task.name])

    def write(self, network: TunedNetwork | None) -> None:
        """Write the best records, and the manifest with `network` in it."""
        records = []
        for state in self._run.states:
            records += self._final.get(state.task.name) or self._database.records(state.task.mod)[:_FINALISTS]
        folder = self._run.folder
        write_best(folder, [record for record in records if seconds(record) < FAILED])
        manifest = _manifest(folder, self._run.states[0].task.target)
        if network is not None:
            manifest.add(network)
        manifest.write(folder)
        self._written = time.monotonic()

    def _record(self, task: TuningTask, sch: s_tir.Schedule, result: Measurement) -> None:
        if result.seconds is None:
            self._logger.info("%s: %s\n%s", task.name, result.error, sch.trace)
        self._database.append(task.mod, self._database_record(task, sch, result))

    def _database_record(self, task: TuningTask, sch: s_tir.Schedule, result: Measurement) -> ms.database.TuningRecord:
        workload = self._database.memory.commit_workload(task.mod)
        value = FAILED if result.seconds is None else result.seconds
        return ms.database.TuningRecord(sch.trace, workload, [value], task.target, task.args_info)


def _resumed(task: TuningTask, database: TuningDatabase) -> TaskState:
    """Return the state of a task as earlier runs left it."""
    state = TaskState(task)
    own = _trace_text(task.default.trace)
    workload = database.memory.commit_workload(task.mod)
    for record in database.all_records():
        if not record.workload.same_as(workload):
            continue
        if _trace_text(record.trace) == own:
            state.default_seconds = seconds(record)
        else:
            state.history.append(seconds(record))
    return state


def _trace_text(trace: s_tir.schedule.Trace) -> str:
    return str(trace)


def _entry(network: Network, batch: int, dtype: str, run: TuningProgress) -> TunedNetwork:
    return TunedNetwork(
        model=network.name,
        batch=batch,
        dtype=dtype,
        image_size=network.input_size,
        kernels=len(run.states),
        recorded=sum((state.best or FAILED) < FAILED for state in run.states),
        trials=run.trials,
        minutes=round((time.monotonic() - run.started) / 60, 1),
        default_ms=round(run.network_seconds(tuned=False) * 1e3, 3),
        tuned_ms=round(run.network_seconds(tuned=True) * 1e3, 3),
        date=datetime.date.today().isoformat(),
    )


def _manifest(folder: Path, target: tvm.target.Target) -> Manifest:
    found = writable_manifest(folder, exists(folder) or exists(folder / MEASURED))
    return found or Manifest(tvm_version(), json.loads(str(target)), f"{cpu_name()}, {physical_cores()} cores")


def _check_installed() -> None:
    missing = [name for name in ("xgboost", "psutil", "cloudpickle", "tornado") if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f'tuning needs {", ".join(missing)}: pip install "tvm-involution[tune]"')


def _check_measurable(target: tvm.target.Target) -> None:
    """Raise `UserError` where this machine cannot run code for `target`."""
    remedy = "measure on a machine that has it: --rpc HOST:PORT --rpc-key KEY"
    if target.kind.name == "cuda":
        if problem := gpu_problem():
            raise UserError(f"no GPU here to measure {target_key(target)} on: {problem}; or {remedy}")
        return
    triple = str(target.attrs.get("mtriple") or "")
    if triple and architecture(triple) != architecture():
        raise UserError(f"this machine is {architecture()} and cannot run code for {triple}; {remedy}")
    if missing := missing_features(cpu_features(target)):
        raise UserError(f"this CPU lacks {', '.join(missing)} of {target_key(target)}; {remedy}")


def _tracker(address: str | None, key: str | None) -> RpcTracker | None:
    if address is None and key is None:
        return None
    host, _, port = (address or "").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536 or not key:
        raise UserError(f"expected rpc='HOST:PORT' and rpc_key='KEY', got {address!r} and {key!r}; for example :9190")
    return RpcTracker(host, int(port), key)


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Let one run at a time write to `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another folder with --log-dir") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another run is tuning into {folder}; wait for it or choose another --log-dir") from error
        yield
    finally:
        os.close(lock)


@contextmanager
def _log_file(path: Path) -> Iterator[logging.Logger]:
    """Send MetaSchedule's log, and nothing else of it, to `path`."""
    logger = logging.getLogger("tvm.s_tir.meta_schedule")
    before = logger.level, logger.propagate
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.level, logger.propagate = before
