# SPDX-License-Identifier: Apache-2.0
"""The comparison: build everything, check that all compute the same, then let all take turns.

Each contender of each network has a process of its own (the thread pools of different libraries disturb each other in
one process), with the same number of threads; and as they take turns, a drifting clock hits all alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Container, Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runtime.arrays import numpy_dtype
from ..runtime.library_file import read_metadata
from .contenders import OURS, Contender
from .effort import Effort
from .entry import Entry, start_worker
from .layer import LayerTable
from .machine import describe_machine
from .process import WorkerError
from .result import Comparison, Result
from .subject import Subject, read_arrays


def compare(
    requests: Sequence[Subject],
    peers: Sequence[Contender],
    effort: Effort | None = None,
    progress: Callable[[str], None] = lambda _: None,
    ours_alone: Container[str] = (),
) -> Comparison:
    """Time our library of each network, and the peers on it.

    A peer that fails, takes too long or computes something else has the reason in its result, and stops nobody.

    Args:
        requests: networks, all with the same sizes; `Comparison.settings` has the first one's dtype.
        progress: told what is being done.
        ours_alone: networks that the peers do not run.

    Raises:
        UserError: one of the networks cannot be compiled or loaded.
    """
    effort = effort or Effort()
    entries: list[Entry] = []
    with contextlib.ExitStack() as stack:
        for request in requests:
            entries += _prepare(request, () if request.model in ours_alone else peers, effort, progress, stack)
        for number in range(effort.rounds):
            progress(f"round {number + 1}/{effort.rounds}")
            for entry in entries:
                entry.take_turn(effort.calls)
    results = [entry.result for entry in entries]
    _add_ratios(results)
    subject = entries[0].subject
    settings = {
        "batch": subject.batch,
        "input_shapes": [list(array.shape) for array in entries[0].inputs],
        "dtype": subject.dtype,
        "rounds": effort.rounds,
        "calls": effort.calls,
    }
    return Comparison(describe_machine(subject.threads), settings, results)


def time_layers(subject: Subject, effort: Effort, progress: Callable[[str], None] = lambda _: None) -> LayerTable:
    """Time the kernels of our own network, in a process of its own (`per_layer`).

    Raises:
        UserError: the network cannot be compiled, or the process failed.
    """
    progress(f"{subject.model}: layers")
    with tempfile.TemporaryDirectory(prefix="tvm-involution-bench-") as folder:
        request = dataclasses.replace(subject, folder=Path(folder))
        with start_worker("layers", request, OURS, effort) as worker:
            try:
                return LayerTable.from_json(worker.answer())
            except WorkerError as error:
                raise UserError(f"the kernels of {subject.model} cannot be timed: {error}") from error


def _prepare(
    request: Subject,
    peers: Sequence[Contender],
    effort: Effort,
    progress: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> list[Entry]:
    """Return the entries of one network, started and checked, ours first."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-involution-bench-")))
    request = dataclasses.replace(request, folder=folder)
    build_s = None
    if request.given_library is None:
        progress(f"{request.model}: compiling")
        build_s = _compile(request, effort)
    metadata = read_metadata(request.library)
    batch = request.batch or metadata.batch_sizes[0]
    subject = dataclasses.replace(request, batch=batch, dtype=metadata.dtype)
    rng = np.random.default_rng(0)
    inputs = []
    for spec in metadata.inputs:
        shape, dtype = spec.shape_for(batch), numpy_dtype(spec.dtype)
        if dtype.kind in "iub":  # indices and flags
            inputs.append(rng.integers(0, 2, shape).astype(dtype))
        else:
            inputs.append(rng.standard_normal(shape, np.float32).astype(dtype).astype(np.float32))
    subject.write_inputs(inputs)

    entries = []
    for contender in (OURS, *peers):
        entry = Entry(contender, subject, metadata.task, inputs, effort)
        if contender is OURS:
            entry.result.build_s = build_s
        else:
            progress(f"{subject.model}: {contender.name} builds")
            entry.build()
        progress(f"{subject.model}: {contender.name} loads")
        entry.start(stack)
        entries.append(entry)
    progress(f"{subject.model}: comparing outputs")
    reference = _reference(entries, effort)
    for entry in entries:
        entry.check(reference)
    return entries


def _compile(request: Subject, effort: Effort) -> float:
    """Make our library; return the seconds that it took."""
    with start_worker("build", request, OURS, effort) as worker:
        try:
            return worker.answer()["build_s"]
        except WorkerError as error:
            raise UserError(f"cannot compile {request.model}: {error}; try `tvm-involution compile` alone") from error


def _reference(entries: Sequence[Entry], effort: Effort) -> list[np.ndarray]:
    """Return the right outputs: torch's in float64, those of our library where it is all there is."""
    subject = entries[0].subject
    if subject.given_library is None or len(entries) > 1:
        with contextlib.suppress(UserError, WorkerError), start_worker("reference", subject, OURS, effort) as worker:
            worker.answer()
            return read_arrays(subject.reference)
    started = (entry for entry in entries if entry.result.failure is None)
    return next((read_arrays(subject.output(entry.contender.name)) for entry in started), [])


def _add_ratios(results: Sequence[Result]) -> None:
    ours = {(result.network, result.dtype): result.seconds for result in results if result.contender == OURS.name}
    for result in results:
        if result.seconds and (own := ours[result.network, result.dtype]):
            result.ratio = statistics.median(result.seconds) / statistics.median(own)
