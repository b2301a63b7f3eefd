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
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from ..arguments import UNCHECKED, Size, checked
from ..compiler import CompiledLibrary, compile
from ..cpu_features import cpu_features
from ..errors import UserError
from ..files import write_json
from ..frontend.network import Network, resolve_network
from ..records.database import FAILED, TuningDatabase, exists, seconds, write_best
from ..records.folders import user_folder
from ..records.manifest import Manifest, TunedNetwork, writable_manifest
from ..runtime.machine import architecture, cpu_name, missing_features
from ..runtime.threads import physical_cores, thread_count
from ..runtime.tvm_runtime import tvm_version
from ..target import as_target, gpu_problem, target_key
from .clock import Clock
from .curves import draw_curves
from .fleet import LostDeviceError, RpcTracker
from .measure import Candidate, Measurement, Measurer
from .scheduler import BATCH, Contest, TaskState, gain_and_spread, next_state, untried, worth_it
from .search import EvolvedSearch, PointSearch, Search
from .side_by_side import SideBySide, run_side_by_side
from .tasks import TuningTask, extract_tasks
from .verify import Verifier

DEFAULT_TRIALS = 2000
MEASURED = "measured"
"""folder of everything that was measured, inside the target's folder of logs"""
REPORT = "report.json"
"""the play-off's table, where the time went, and the network's own times; in `MEASURED`"""
# the first tasks are few, so that there is something to see soon
_FIRST_DEFAULTS = 2
# trials of a task that had none
_FIRST_TRIALS = 8
# the best databases are written this often, so that a killed run leaves most of what it found to `compile`
_CHECKPOINT_SECONDS = 60.0
# how many of a task's best are measured again, side by side with the default, before one is kept
_FINALISTS, _FINAL_ROUNDS = 3, 3
# of a budget of minutes, what the play-off and the comparison of the networks may take each
_ENDING = 0.2
# running both networks at the end
_RUN_SECONDS = 5.0
# compiling a network takes about this many times what finding its tasks takes
_COMPILE = 2.0


@dataclass
class TuningProgress:
    """Where a run stands; handed to `progress` whenever it changes."""

    phase: str
    states: list[TaskState]
    trials: int
    """measured so far, by earlier runs too"""
    max_trials: int | None
    minutes: float | None
    folder: Path
    clock: Clock
    """where the time of this call goes"""
    own_trials: int = 0
    """measured by this call"""
    side_by_side: SideBySide | None = None
    """the network itself, without and with what was found"""
    not_compared: str = ""
    """why there is no `side_by_side`"""

    def network_seconds(self, tuned: bool) -> float:
        """Return the sum over the kernels of a network, with defaults or with the best so far."""
        times = ((state.best if tuned else state.default_seconds, state.task.calls) for state in self.states)
        return sum((value or 0.0) * calls for value, calls in times)

    @property
    def gain(self) -> tuple[float, float]:
        """Between what the kernels became faster, as times vary: the play-off's rounds, before it the defaults'."""
        return gain_and_spread(self.states)

    @property
    def minutes_left(self) -> float | None:
        """The minutes of the budget that are left, None where there is no such budget."""
        if self.minutes is None:
            return None
        return max(0.0, self.minutes - self.clock.elapsed / 60)

    @property
    def trials_a_second(self) -> float:
        """Candidates a second of this call, its own overhead included."""
        return self.own_trials / self.clock.elapsed

    def report(self) -> dict[str, Any]:
        """Return the play-off's table, where the time went, and the network's times, for JSON."""
        return {
            "tasks": [_contest_entry(state) for state in self.states],
            "kernels_gain": self.gain,
            "network": None
            if self.side_by_side is None
            else {**asdict(self.side_by_side), "gain": self.side_by_side.gain, "spread": self.side_by_side.spread},
            "not_compared": self.not_compared,
            "seconds": {what: round(value, 3) for what, value in self.clock.table().items()},
            "trials": self.own_trials,
            "trials_a_second": round(self.trials_a_second, 2),
        }

    def draw_curves(self, picture: str | Path) -> None:
        """Draw the network's estimated time, and each task's gain, over the trials, to the PNG `picture`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        draw_curves(self.folder / MEASURED, self.states, Path(picture))


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
    compare: bool = True,
    progress: Callable[[TuningProgress], None] = lambda _: None,
) -> TuningProgress:
    """Tune a network's kernels for a target; `compile` uses what is found.

    Killed, it loses the measurement in flight; called again, it goes on where it was.

    Args:
        model, batch, dtype, image_size: as `compile` takes them.
        target: `llvm` (this CPU), `cuda` (this GPU), a tag or JSON that `tvm.target.Target` takes, or a target.
        trials: candidates to measure, those of earlier runs for the same kernels included; 2000 where neither this nor
            `minutes` is given.
        minutes: time to spend in this call, play-off and comparison included.
        log_dir: folder of tuning logs, a folder a target in it; by default the user's own, which `compile` looks in.
        rpc: `HOST:PORT` of a TVM RPC tracker whose devices measure in place of this machine.
        rpc_key: the key under which these devices are registered.
        compare: at the end compile the network without and with what was found, and run both in turns.
        progress: told where the run stands, after each step.

    Returns:
        How it ended; the times of `states` are those of the last, side-by-side measurement.

    Raises:
        UserError: whatever is wrong with the arguments, a full disk, no device: what was measured before is kept.
    """
    clock = Clock()
    _check_installed()
    thread_count()  # else every candidate would fail by what is wrong with TVM_NUM_THREADS
    resolved = as_target(target)
    tracker = _tracker(rpc, rpc_key)
    if trials is None and minutes is None:
        trials = DEFAULT_TRIALS
    if (trials is not None and trials < 1) or (minutes is not None and not 0 < minutes < math.inf):
        raise UserError(f"the budget must be positive, got trials={trials}, minutes={minutes}; for example trials=1000")
    if tracker is None:
        _check_measurable(resolved)
    folder = (Path(log_dir) if log_dir is not None else user_folder()) / target_key(resolved)
    network = resolve_network(model, image_size=image_size)
    (size,) = network.batch_sizes(batch)
    wanted = network.resolve_dtype(dtype)
    network.export(size)  # kept for the tasks; what cannot be traced leaves no folder behind
    run = TuningProgress("find tasks", [], 0, trials, minutes, folder, clock)
    # what can be wrong with folder and devices is told before the long part begins
    with (
        _exclusive(folder / MEASURED),
        _log_file(folder / MEASURED / "tuning.log") as logger,
        Measurer(resolved, tracker, clock=clock, minutes=math.inf if minutes is None else minutes) as measurer,
    ):
        # before there are records, so that none is ever without
        _manifest(folder, resolved).write(folder)
        database = TuningDatabase(folder / MEASURED)
        progress(run)
        with clock.spent_in("find tasks"):
            tasks = extract_tasks(network, resolved, batch=size, dtype=wanted)
        run.states = [_resumed(task, database) for task in tasks]
        run.trials = sum(len(state.history) for state in run.states)
        search = _Search(run, resolved, database, measurer, logger, progress, compare and tracker is None)
        try:
            search.measure_defaults()
            search.spend_budget()
            search.play_off()
        finally:
            # Ctrl-C and a full disk come here too
            search.write(_entry(network, size, wanted, run))

    def compile_with(logs: Path) -> CompiledLibrary:
        return compile(model, resolved, batch=size, dtype=dtype, image_size=image_size, tuning_logs=logs)

    search.compare(compile_with, "" if compare else "it was not asked for")
    write_json(folder / MEASURED / REPORT, run.report())
    run.phase = "done"
    progress(run)
    return run


class _Search:
    """One run: its tasks, what it measures with, where it writes."""

    def __init__(
        self,
        run: TuningProgress,
        target: tvm.target.Target,
        database: TuningDatabase,
        measurer: Measurer,
        logger: logging.Logger,
        progress: Callable[[TuningProgress], None],
        compares: bool,
    ) -> None:
        self._run, self._target = run, target
        self._database, self._measurer, self._logger = database, measurer, logger
        self._progress, self._compares = progress, compares
        self._searches: dict[str, Iterator[Search]] = {}
        self._current: dict[str, Search] = {}
        self._verifiers: dict[str, Verifier] = {}
        # built defaults, to time again
        self._defaults: dict[str, Candidate] = {}
        # side-by-side results by the task's name, which replace what was measured before
        self._final: dict[str, list[ms.database.TuningRecord]] = {}
        self._written = time.monotonic()

    @cached_property
    def _cost_model(self) -> ms.CostModel:
        return ms.cost_model.XGBModel(num_warmup_samples=32, num_tuning_cores=physical_cores())

    def measure_defaults(self) -> None:
        """Measure what runs where nothing is tuned, of the tasks for which no earlier run did."""
        missing = [state for state in self._run.states if not state.default_times]
        size, total = _FIRST_DEFAULTS, len(missing)
        while missing and self._seconds_left() > 0:
            self._run.phase = f"measure defaults ({total - len(missing)} of {total})"
            self._progress(self._run)
            states, missing = missing[:size], missing[size:]
            size = min(2 * size, BATCH)
            candidates = [Candidate(state.task.default, state.task.args_info) for state in states]
            for state, candidate, result in zip(states, candidates, self._measurer.measure(candidates), strict=True):
                self._see_default(state, candidate, result)

    def _see_default(self, state: TaskState, candidate: Candidate, result: Measurement) -> None:
        """Take a time of the default; a better one is recorded, so that nothing slower passes for faster."""
        if result.artifact is not None:
            self._defaults[state.task.name] = replace(candidate, artifact=result.artifact)
        before = min(state.default_times, default=math.inf)
        if result.seconds is not None:
            state.default_times.append(result.seconds)
        news = result.seconds is not None and result.seconds < before
        failed = result.seconds is None and not result.lost and not state.default_times
        if (news or failed) and state.task.can_record(state.task.default):
            self._record(state.task, state.task.default, result)

    def spend_budget(self) -> None:
        """Search, task by task, until the budget is spent or nothing improves."""
        self._run.phase = "search"
        self._progress(self._run)
        while (left := self._trials_left()) > 0 and (state := next_state(self._run.states)) is not None:
            fresh = untried(self._run.states)
            size = max(1, min(_FIRST_TRIALS, left // len(fresh))) if state in fresh else min(left, BATCH)
            try:
                self._step(state, size)
            except (RuntimeError, ValueError, TypeError) as error:  # one task never stops another
                if isinstance(error, UserError):
                    raise
                self._logger.exception("task %s stopped", state.task.name)
                state.stopped = f"MetaSchedule failed: {str(error).strip().splitlines()[0]}"[:100]
            self._progress(self._run)
            if time.monotonic() - self._written > _CHECKPOINT_SECONDS:
                self.write(None)

    def _seconds_left(self) -> float:
        """Return the seconds that are left before the play-off must begin."""
        left = self._run.minutes_left
        if left is None:
            return math.inf
        assert self._run.minutes is not None
        most = self._run.minutes * 60 * _ENDING
        contests = sum(any(s < (state.default_seconds or FAILED) for s in state.history) for state in self._run.states)
        play_off = contests * (_FINALISTS + 1) * self._trial_seconds()
        return left * 60 - min(most, play_off) - (0.0 if self._why_not_compare() else self._compare_seconds())

    def _compare_seconds(self) -> float:
        return 2 * _COMPILE * self._run.clock.seconds.get("find tasks", 0.0)

    def _why_not_compare(self) -> str:
        """Return why the networks are not compared at the end, as far as is known."""
        if not self._compares:
            return "it runs on another machine"
        minutes, needed = self._run.minutes, self._compare_seconds()
        if minutes is not None and needed > _ENDING * 60 * minutes:
            return f"it takes about {needed:.0f} s, more than {_ENDING:.0%} of the budget"
        return ""

    def _trial_seconds(self) -> float:
        """Return what a trial takes, as far as is known."""
        spent = sum(self._run.clock.seconds.get(what, 0.0) for what in ("build", "time", "check", "propose"))
        return spent / (self._run.own_trials + len(self._defaults) + 1)

    def _trials_left(self) -> int:
        left = self._seconds_left()
        by_time = BATCH if math.isinf(left) else math.ceil(max(0.0, left) / max(self._trial_seconds(), 1e-3))
        return by_time if self._run.max_trials is None else min(by_time, self._run.max_trials - self._run.trials)

    def _step(self, state: TaskState, size: int) -> None:
        search = self._search(state)
        if search is None:
            state.stopped = "space exhausted" if state.history else state.task.left_out or "space exhausted"
            return
        with self._run.clock.spent_in("propose"):
            schedules = search.propose(size)
        if not schedules:
            del self._current[state.task.name]
            return
        own = Candidate(state.task.default, state.task.args_info)
        default = self._defaults.get(state.task.name, own)
        limit = state.best if state.best is not None else math.inf
        candidates = [Candidate(sch, state.task.args_info, limit) for sch in schedules]
        # the default again, in the same noise
        again, *results = self._measurer.measure([default, *candidates])
        self._see_default(state, default, again)
        results = self._without_wrong_winners(state, results)
        for sch, result in zip(schedules, results, strict=True):
            if result.lost:
                self._logger.info("%s: not judged, %s\n%s", state.task.name, result.error, sch.trace)
                continue
            self._record(state.task, sch, result)
            state.history.append(FAILED if result.seconds is None else result.seconds)
            self._run.trials += 1
            self._run.own_trials += 1
        if state.best is not None:
            state.batch_bests.append(state.best)
        with self._run.clock.spent_in("learn"):
            search.learn([None if r.lost else FAILED if r.seconds is None else r.seconds for r in results])

    def _search(self, state: TaskState) -> Search | None:
        """Return what proposes the task's next candidates, None where there is nothing more."""
        name = state.task.name
        if name not in self._searches:
            self._searches[name] = self._searches_of(state)
        if name not in self._current:
            found = next(self._searches[name], None)
            if found is None:
                return None
            self._current[name] = found
        return self._current[name]

    def _searches_of(self, state: TaskState) -> Iterator[Search]:
        task = state.task
        known = {_trace_text(record.trace): seconds(record) for record in self._database.records(task.mod)}
        if task.spaces:
            yield PointSearch(task.mod, task.default, task.spaces, known)
        if task.evolves and state in worth_it(self._run.states):
            yield EvolvedSearch(task, known, self._database.memory, self._cost_model, self._logger, physical_cores())

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
        with self._run.clock.spent_in("check"):
            try:
                wrong = verifier.error(self._measurer, result.artifact)
            except LostDeviceError as error:
                return Measurement(None, str(error), result.artifact, lost=True)
        return result if wrong is None else Measurement(None, wrong, result.artifact)

    def play_off(self) -> None:
        """Measure each task's best again, side by side with the default: a lucky measurement must not win."""
        self._run.phase = "compare the best with the defaults"
        self._progress(self._run)
        gained = [s for s in self._run.states if any(value < (s.default_seconds or FAILED) for value in s.history)]
        gained.sort(key=lambda state: -state.seconds)
        while gained and (size := self._contests_left()) > 0:
            states, gained = gained[:size], gained[size:]
            contests = [(state, sch) for state in states for sch in (state.task.default, *self._finalists(state))]
            candidates = [
                self._defaults.get(state.task.name, Candidate(sch, state.task.args_info))
                if sch is state.task.default
                else Candidate(sch, state.task.args_info)
                for state, sch in contests
            ]
            results = self._measurer.measure(candidates, _FINAL_ROUNDS)
            for state in states:
                own = [(sch, result) for (of, sch), result in zip(contests, results, strict=True) if of is state]
                self._decide(state, own)
            self._progress(self._run)

    def _contests_left(self) -> int:
        """Return how many tasks to decide next."""
        most, left = 2 * BATCH // (_FINALISTS + 1), self._run.minutes_left
        if left is None or left <= 0:
            return most if left is None else 0
        return max(1, min(most, int(left * 60 / ((_FINALISTS + 1) * self._trial_seconds()))))

    def _finalists(self, state: TaskState) -> list[s_tir.Schedule]:
        own = _trace_text(state.task.default.trace)
        found = []
        for record in [r for r in self._fastest(state) if _trace_text(r.trace) != own][:_FINALISTS]:
            found.append(s_tir.Schedule(state.task.mod))
            record.trace.apply_to_schedule(found[-1], remove_postproc=False)
        return found

    def _fastest(self, state: TaskState) -> list[ms.database.TuningRecord]:
        """Return what ran, each schedule once, the fastest first."""
        found = [record for record in self._database.records(state.task.mod) if seconds(record) < FAILED]
        return list({_trace_text(record.trace): record for record in reversed(found)}.values())[::-1]

    def _known_right(self, state: TaskState) -> list[ms.database.TuningRecord]:
        """Return of what ran the default and the fastest, which alone has been checked for certain."""
        own, best = _trace_text(state.task.default.trace), -math.inf if state.best is None else state.best
        # records keep their seconds in single precision
        return [r for r in self._fastest(state) if _trace_text(r.trace) == own or seconds(r) <= best * (1 + 1e-6)]

    def _decide(self, state: TaskState, results: list[tuple[s_tir.Schedule, Measurement]]) -> None:
        """Take the finalist with the least median, or the default where none is faster."""
        (default, of_default), *others = results
        whole = [(sch, r) for sch, r in others if len(r.rounds) == _FINAL_ROUNDS]
        right = [
            (sch, r) for sch, r in whole if (checked := self._checked(state, r)).seconds is not None or checked.lost
        ]
        for sch, result in others:
            if not any(sch is kept for kept, _ in right):
                self._logger.info("%s: %s", state.task.name, result.error or "wrong in the play-off")
        own = of_default.rounds if len(of_default.rounds) == _FINAL_ROUNDS else ()
        if not own and not right:
            return
        medians = [statistics.median(result.rounds) for _, result in right]
        winner = min(range(len(right)), key=medians.__getitem__, default=None)
        if winner is not None and own and statistics.median(own) <= medians[winner]:
            winner = None
        state.contest = Contest(own, tuple(result.rounds for _, result in right), winner)
        kept = [*([(default, of_default)] if own and state.task.can_record(default) else []), *right]
        self._final[state.task.name] = [
            self._database_record(state.task, sch, replace(result, seconds=statistics.median(result.rounds)))
            for sch, result in kept
        ]

    def compare(self, compile_with: Callable[[Path], CompiledLibrary], why_not: str) -> None:
        """Compile the network without and with what was found, and run both in turns."""
        run = self._run
        left = math.inf if run.minutes_left is None else run.minutes_left * 60
        why_not = why_not or self._why_not_compare()
        if not any(state.contest is not None and state.contest.winner is not None for state in run.states):
            why_not = why_not or "no kernel is faster than its default"
        run.not_compared = why_not or ("the time is spent" if left <= 0 else "")
        if run.not_compared:
            return
        run.phase = "compare the networks"
        self._progress(run)
        with run.clock.spent_in("compare the networks"):
            seconds_left = min(left, self._compare_seconds() + _RUN_SECONDS)
            try:
                run.side_by_side = run_side_by_side(compile_with, run.folder.parent, seconds_left)
            except UserError as error:  # what was tuned stays
                run.not_compared = str(error)
        if run.side_by_side is None:
            run.not_compared = run.not_compared or "compiling it took too much of the budget"

    def write(self, network: TunedNetwork | None) -> None:
        """Write the best records, and the manifest with `network` in it."""
        records = []
        for state in self._run.states:
            records += self._final.get(state.task.name) or self._known_right(state)[:_FINALISTS]
        folder = self._run.folder
        write_best(folder, [record for record in records if seconds(record) < FAILED])
        manifest = _manifest(folder, self._target)
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


def _contest_entry(state: TaskState) -> dict[str, Any]:
    def microseconds(values: Sequence[float]) -> list[float]:
        return [round(value * 1e6, 3) for value in values]

    contest = state.contest
    return {
        "task": state.task.name,
        "calls": state.task.calls,
        "trials": len(state.history),
        "ended": state.stopped,
        "default_us": microseconds(contest.default if contest is not None else state.default_times),
        "finalists_us": [microseconds(rounds) for rounds in contest.finalists] if contest is not None else [],
        "winner": contest.winner if contest is not None else None,
    }


def _resumed(task: TuningTask, database: TuningDatabase) -> TaskState:
    """Return the state of a task as earlier runs left it."""
    state = TaskState(task)
    own = _trace_text(task.default.trace)
    workload = database.memory.commit_workload(task.mod)
    for record in database.all_records():
        if not record.workload.same_as(workload):
            continue
        if _trace_text(record.trace) != own:
            state.history.append(seconds(record))
        elif seconds(record) < FAILED:
            state.default_times.append(seconds(record))
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
        minutes=round(run.clock.elapsed / 60, 1),
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
