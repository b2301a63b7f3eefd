# SPDX-License-Identifier: Apache-2.0
"""Whole networks, ours and others, in turns; and ours again with tuning records.

All contenders of a group (one precision and batch) live at the same time, each in a process of its own, and take turns:
so clocks that drift hit all alike. What compiles does so side by side; everything else, for which cuDNN picks
algorithms by their times, makes its first call while nothing else runs.
"""

from __future__ import annotations

import contextlib
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tvm_involution as ti
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import extract_programs

from .. import peers
from ..models import find_module, find_network
from ..pictures import make_inputs
from ..programs import arguments_of, operations_of, relative_error
from ..results import FAILED, Results, Row, rounded
from ..roofs import read_roofs
from ..settings import OURS, TUNED, Settings, dtype_of
from ..timing import Turn, time_calls
from ..workers import NO_TIME, OUT_OF_MEMORY, Worker
from .layers import measure_layers

ROUNDS, CALLS = 5, 20
_BUILD_SECONDS, _TURN_SECONDS = 300.0, 60.0


@dataclass(frozen=True)
class Group:
    """What is compared in one go."""

    models: tuple[str, ...]
    precision: str
    batch: int


def networks(settings: Settings, results: Results) -> None:
    """Time the networks in ours and in peers."""
    groups = [Group(settings.models, p, batch) for p in settings.precisions for batch in settings.batches]
    groups += [Group(settings.more_models, settings.precisions[0], batch) for batch in settings.batches]
    contenders = [name for name in (OURS, *peers.PEERS) if settings.wants(name)]
    _run_groups(settings, results, "networks", [group for group in groups if group.models], contenders)


def tuned(settings: Settings, results: Results) -> None:
    """Time the first network with tuning records beside the same without, then its kernels."""
    groups = [Group(settings.models[:1], settings.precisions[0], batch) for batch in settings.batches]
    _run_groups(settings, results, "tuned", groups, [OURS, TUNED])
    measure_layers(settings, results, tuned=True)


def _run_groups(
    settings: Settings, results: Results, step: str, groups: Sequence[Group], contenders: Sequence[str]
) -> None:
    missing = {
        group: [
            (model, contender)
            for model in group.models
            for contender in contenders
            if results.row(step, **_key(group, model, contender)) is None
        ]
        for group in groups
    }
    with Builds(settings) as builds:
        for group in groups:
            # our libraries for the next batches of this precision are built beside those of the first
            for other in groups:
                if (other.precision, other.models) == (group.precision, group.models):
                    builds.start(other, missing[other])
            failed = _run_group(settings, results, step, group, missing[group], builds)
            # whoever found no room beside the others gets the GPU for itself
            for alone in [entry for entry, reason in failed.items() if reason == OUT_OF_MEMORY]:
                _run_group(settings, results, step, group, [alone], builds)


class Builds:
    """Our libraries, built in the background, and what their kernels move and compute."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(6)
        self._libraries: dict[tuple[Group, str, str], Any] = {}

    def __enter__(self) -> Builds:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def start(self, group: Group, entries: Sequence[tuple[str, str]]) -> None:
        """Begin to build the libraries of a group's models and contenders."""
        for model, contender in entries:
            key = (group, model, contender)
            if contender in (OURS, TUNED) and key not in self._libraries:
                self._libraries[key] = self._pool.submit(self._build, *key)

    def wait(self) -> None:
        """Wait for all that was begun: nothing else may run while something is timed."""
        for future in self._libraries.values():
            future.result()

    def library(self, group: Group, model: str, contender: str) -> Any:
        """Return the outcome of a build: a path, and counts (`compile_ours`)."""
        return self._libraries[group, model, contender].result()

    def _build(self, group: Group, model: str, contender: str) -> Any:
        settings = self._settings
        name = f"{model}-{group.precision}-{group.batch}-{contender.replace(' ', '-')}.so"
        logs = settings.tuning_logs if contender == TUNED else None
        with Worker(settings, 2) as worker:
            return worker.do(
                compile_ours,
                *(model, settings.target, group.precision, group.batch, settings.image_size, logs),
                settings.scratch / name,
                seconds=_BUILD_SECONDS,
            )


def compile_ours(
    model: str, target: str, precision: str, batch: int, image_size: int, logs: Path | None, path: Path
) -> Row:
    """Compile a network; return the library's path and each kernel's bytes, operations and calls."""
    dtype, tf32, size = dtype_of(precision), precision == "tf32", (image_size, image_size)
    began = time.monotonic()
    empty = path.with_suffix(".no-logs")
    empty.mkdir(exist_ok=True)
    torch.manual_seed(0)
    library = ti.compile(model, target, batch=batch, dtype=dtype, image_size=size, tf32=tf32, tuning_logs=logs or empty)
    library.save(path)
    seconds = time.monotonic() - began
    programs = extract_programs(
        find_network(model, image_size), resolve_target(target), batch=batch, dtype=dtype, tf32=tf32
    )
    counts = [(arguments_of(p.mod).bytes, operations_of(p.mod), p.calls) for p in programs]
    kernels = library.metadata.kernels
    coverage = f"{kernels.record} by record, {kernels.rule} by rule, {kernels.fallback} by none"
    return {"path": str(path), "counts": counts, "build_s": round(seconds, 1), "kernels": coverage}


@dataclass
class Entry:
    """A contender on a network: its process, and what is known of it."""

    model: str
    contender: str
    worker: Worker
    fields: Row = field(default_factory=dict)
    failure: str | None = None
    logits: np.ndarray | None = None
    busy: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def _run_group(
    settings: Settings,
    results: Results,
    step: str,
    group: Group,
    names: Sequence[tuple[str, str]],
    builds: Builds,
) -> dict[tuple[str, str], str]:
    """Run one group; return who failed, and why."""
    if not names:
        return {}
    if settings.seconds_left < 10:
        for model, contender in names:
            results.put(step, _key(group, model, contender), **{FAILED: NO_TIME})
        return {}
    rng = np.random.default_rng(secrets.randbits(32))
    inputs, kind = make_inputs(group.batch, settings.image_size, rng)
    path = settings.scratch / f"inputs-{group.batch}.npy"
    np.save(path, inputs)
    with contextlib.ExitStack() as stack:
        entries = [Entry(*name, stack.enter_context(Worker(settings))) for name in names]
        with ThreadPoolExecutor(2 * len(entries)) as pool:
            models = dict.fromkeys(model for model, _ in names)
            references = {model: pool.submit(_reference, settings, model, path) for model in models}
            list(pool.map(lambda entry: _set_up(settings, group, entry, path, builds), entries))
            expected = {model: future.result() for model, future in references.items()}
        builds.wait()
        for entry in entries:
            _first_call(settings, entry)
            if entry.logits is not None and expected[entry.model] is not None:
                error = relative_error(torch.from_numpy(entry.logits), torch.from_numpy(expected[entry.model]))
                entry.fields |= {"error": rounded(error, 3), "inputs": kind}
            _put(results, step, group, entry)
        for _ in range(ROUNDS):
            for entry in [entry for entry in entries if entry.failure is None]:
                _take_turn(settings, entry)
                _put(results, step, group, entry)
    return {(entry.model, entry.contender): entry.failure for entry in entries if entry.failure is not None}


def _set_up(settings: Settings, group: Group, entry: Entry, inputs: Path, builds: Builds) -> None:
    """Do what may be done beside others: load, compile."""
    common = (entry.model, entry.contender, group.precision, settings.image_size, str(inputs), settings.device)
    library = None
    if entry.contender in (OURS, TUNED):
        outcome = builds.library(group, entry.model, entry.contender)
        if outcome.failure is not None:
            entry.failure = outcome.failure
            return
        library = outcome.value["path"]
        entry.fields |= {"build_s": outcome.value["build_s"], "kernels": outcome.value["kernels"]}
        entry.fields["counts"] = outcome.value["counts"]
    began = time.monotonic()
    outcome = entry.worker.do(set_up, *common, library, seconds=_BUILD_SECONDS)
    entry.failure = outcome.failure or outcome.value
    if library is None:
        entry.fields["build_s"] = round(time.monotonic() - began, 1)


def _reference(settings: Settings, model: str, inputs: Path) -> np.ndarray | None:
    with Worker(settings) as worker:
        outcome = worker.do(reference, model, settings.image_size, str(inputs), settings.device, seconds=_BUILD_SECONDS)
    if outcome.failure is not None:
        print(f"no reference for {model}: {outcome.failure}", flush=True)
    return outcome.value


def _first_call(settings: Settings, entry: Entry) -> None:
    if entry.failure is not None:
        return
    outcome = entry.worker.do(first_call, entry.model, entry.contender, seconds=_BUILD_SECONDS)
    entry.failure, entry.logits = outcome.failure, outcome.value


def _take_turn(settings: Settings, entry: Entry) -> None:
    outcome = entry.worker.do(take_turn, entry.model, entry.contender, settings.device, seconds=_TURN_SECONDS)
    if outcome.failure is not None:
        entry.failure = outcome.failure  # what was timed before stays
        return
    entry.busy.append(outcome.value.busy_ms)
    entry.latencies += outcome.value.latency_ms


def _put(results: Results, step: str, group: Group, entry: Entry) -> None:
    fields = dict(entry.fields)
    counts = fields.pop("counts", None)
    if counts:
        fields |= _floor(results, group.precision, counts)
    if entry.busy:
        fields |= {
            "ms": rounded(statistics.median(entry.busy)),
            "min_ms": rounded(min(entry.busy)),
            "latency_ms": rounded(statistics.median(entry.latencies)),
            "rounds": len(entry.busy),
        }
    else:
        fields[FAILED] = entry.failure or "not timed"
    results.put(step, _key(group, entry.model, entry.contender), **fields)


def _floor(results: Results, precision: str, counts: Sequence[tuple[int, int, int]]) -> Row:
    """Return the sum over the kernels of the time that their bytes or operations take at the roofs."""
    roofs = read_roofs(results, precision)
    floors = [(roofs.floor_us(moved, operations), calls) for moved, operations, calls in counts]
    known = [floor * calls for floor, calls in floors if floor is not None]
    return {
        "gflop": rounded(sum(operations * calls for _, operations, calls in counts) / 1e9),
        "megabytes": rounded(sum(moved * calls for moved, _, calls in counts) / 1e6),
        "launches": sum(calls for _, _, calls in counts),
        "floor_ms": rounded(sum(known) / 1e3) if known else None,
    }


def _key(group: Group, model: str, contender: str) -> Row:
    return {"model": model, "contender": contender, "precision": group.precision, "batch": group.batch}


# What follows runs in the worker processes.

_calls: dict[tuple[str, str], Callable[[], Any]] = {}


def set_up(
    model: str, contender: str, precision: str, image_size: int, inputs: str, device: str, library: str | None
) -> str | None:
    """Prepare what `first_call` and `take_turn` call; return why the contender cannot run the network here."""
    module = find_module(model, image_size)
    if reason := peers.absent(contender, module):
        return reason
    layout = torch.contiguous_format if library else peers.memory_format(contender)
    dtype = getattr(torch, dtype_of(precision))
    x = torch.from_numpy(np.load(inputs)).to(device, dtype).to(memory_format=layout)
    # copies take turns, so that the input is not found in a cache
    copies = [x.clone(memory_format=torch.preserve_format) for _ in range(4)]
    run = ti.load(library) if library else peers.prepare(contender, module, precision, x)
    number = 0

    def call() -> Any:
        nonlocal number
        number += 1
        return run(copies[number % 4])

    _calls[model, contender] = call
    return None


def first_call(model: str, contender: str) -> np.ndarray:
    """Run the network a few times; return the logits of all images as float64."""
    for _ in range(4):
        logits = _calls[model, contender]()
    compared = logits.double().cpu().numpy()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return compared


def take_turn(model: str, contender: str, device: str) -> Turn:
    """Time some calls."""
    return time_calls(_calls[model, contender], CALLS, device)


def reference(model: str, image_size: int, inputs: str, device: str) -> np.ndarray:
    """Return the logits of all images, computed in float64."""
    return peers.reference_logits(find_module(model, image_size), np.load(inputs), device).numpy()
