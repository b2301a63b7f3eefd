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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..runtime.arrays import numpy_dtype
from ..runtime.library_file import read_metadata
from .contenders import OURS, Contender
from .layer import LayerTable
from .machine import describe_machine
from .process import Worker, WorkerError
from .result import Comparison, Result
from .subject import Subject, read_arrays

# further than that from the reference, something else was computed
_TOLERANCES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.2}


@dataclasses.dataclass(frozen=True)
class Effort:
    """How long to measure."""

    rounds: int = 10
    """turns of each contender"""
    calls: int = 10
    """inferences a turn"""
    timeout: float = 900.0
    """seconds that a contender may take to build, to load or for a turn"""
    show_output: bool = False
    """let through what the libraries print"""


def compare(
    requests: Sequence[Subject],
    peers: Sequence[Contender],
    effort: Effort | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Time our library of each network, and the peers on it.

    A peer that fails, takes too long or computes something else has the reason in its result, and stops nobody.

    Args:
        requests: networks, all with the same sizes and dtype.
        progress: told what is being done.

    Raises:
        UserError: one of the networks cannot be compiled or loaded.
    """
    effort = effort or Effort()
    entries: list[_Entry] = []
    with contextlib.ExitStack() as stack:
        for request in requests:
            entries += _prepare(request, peers, effort, progress, stack)
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


class _Entry:
    """A contender on a network: its result and, while it is in the race, its process."""

    def __init__(self, contender: Contender, subject: Subject, inputs: Sequence[np.ndarray], effort: Effort) -> None:
        self.contender = contender
        self.subject = subject
        self.inputs = inputs
        self.result = Result(
            network=subject.model,
            contender=contender.name,
            version=contender.version(),
            settings=contender.settings,
        )
        self._effort = effort
        self._worker: Worker | None = None

    def note(self, fields: dict[str, Any]) -> None:
        """Take over what a worker answered into the result."""
        for name, value in fields.items():
            setattr(self.result, name, value)

    def build(self) -> None:
        """Have what is done ahead of time done."""
        if self.subject.dtype not in self.contender.dtypes:
            self.result.failure = f"no {self.subject.dtype} on a CPU"
            return
        with self._guarded(), self._start("build") as worker:
            self.note(worker.answer())

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the process that is timed and have it load the network."""
        if self.result.failure is not None:
            return
        with self._guarded():
            self._worker = stack.enter_context(self._start("run"))
            self.note(self._worker.answer())

    def check(self, reference: Sequence[np.ndarray]) -> None:
        """Take a contender out of the race that computes something else than the reference."""
        if self.result.failure is not None:
            return
        outputs = read_arrays(self.subject.output(self.contender.name))
        shapes = [[list(array.shape) for array in arrays] for arrays in (outputs, reference)]
        if shapes[0] != shapes[1]:
            self._fail(f"computes something else: outputs {shapes[0]}, expected {shapes[1]}")
            return
        actual, expected = (np.concatenate([np.ravel(a).astype(np.float64) for a in x]) for x in (outputs, reference))
        error = float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), np.finfo(np.float64).tiny))
        tolerance = _TOLERANCES[str(self.subject.dtype)]
        if not error <= tolerance:
            self._fail(f"computes something else: relative error {error:.1e}, of which {tolerance:.0e} can be rounding")
        self.result.relative_error = error if np.isfinite(error) else None

    def take_turn(self, calls: int) -> None:
        """Time `calls` inferences."""
        if self._worker is None:
            return
        with self._guarded():
            answer = self._worker.ask(calls)
            self.result.seconds += answer["seconds"]
            self.result.peak_memory_bytes = answer["peak_memory_bytes"]

    def _start(self, step: str) -> Worker:
        return start_worker(step, self.subject, self.contender, self._effort)

    def _fail(self, reason: str) -> None:
        self.result.failure = reason
        self.result.seconds = []
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Note a failure; what our own library cannot do is the caller's error."""
        try:
            yield
        except UserError as error:
            if self.contender is OURS:
                raise
            self._fail(str(error))
        except WorkerError as error:
            self._fail(str(error))


def start_worker(step: str, subject: Subject, contender: Contender, effort: Effort) -> Worker:
    """Start a process that does `step`."""
    reference = f"{type(contender).__module__}:{type(contender).__qualname__}"
    return Worker(step, subject, reference, effort.timeout, effort.show_output)


def _prepare(
    request: Subject,
    peers: Sequence[Contender],
    effort: Effort,
    progress: Callable[[str], None],
    stack: contextlib.ExitStack,
) -> list[_Entry]:
    """Return the entries of one network, started and checked, ours first."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-involution-bench-")))
    request = dataclasses.replace(request, folder=folder)
    progress(f"{request.model}: compiling")
    with start_worker("build", request, OURS, effort) as worker:
        try:
            built = worker.answer()
        except WorkerError as error:
            raise UserError(f"cannot compile {request.model}: {error}; try `tvm-involution compile` alone") from error
    metadata = read_metadata(request.library)
    batch = request.batch or metadata.batch_sizes[0]
    subject = dataclasses.replace(request, batch=batch, dtype=metadata.dtype)
    rng = np.random.default_rng(0)
    inputs = []
    for spec in metadata.inputs:
        array = rng.standard_normal((batch, *(int(d) for d in spec.shape[1:])), np.float32)
        inputs.append(array.astype(numpy_dtype(spec.dtype)).astype(np.float32))
    subject.write_inputs(inputs)

    entries = []
    for contender in (OURS, *peers):
        entry = _Entry(contender, subject, inputs, effort)
        if contender is not OURS:
            progress(f"{subject.model}: {contender.name} builds")
            entry.build()
        else:
            entry.note(built)
        progress(f"{subject.model}: {contender.name} loads")
        entry.start(stack)
        entries.append(entry)
    progress(f"{subject.model}: comparing outputs")
    reference = _reference(entries, effort)
    for entry in entries:
        entry.check(reference)
    return entries


def _reference(entries: Sequence[_Entry], effort: Effort) -> list[np.ndarray]:
    """Return the right outputs: torch's in float64, those of our library where it is all there is."""
    subject = entries[0].subject
    if subject.given_library is None or len(entries) > 1:
        with contextlib.suppress(UserError, WorkerError), start_worker("reference", subject, OURS, effort) as worker:
            worker.answer()
            return read_arrays(subject.reference)
    started = (entry for entry in entries if entry.result.failure is None)
    return next((read_arrays(subject.output(entry.contender.name)) for entry in started), [])


def _add_ratios(results: Sequence[Result]) -> None:
    ours = {result.network: result.seconds for result in results if result.contender == OURS.name}
    for result in results:
        if result.seconds and ours[result.network]:
            result.ratio = statistics.median(result.seconds) / statistics.median(ours[result.network])
