# SPDX-License-Identifier: Apache-2.0
"""A contender on its way through a comparison: built, started, checked, timed; or out of it, with the reason."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import UserError
from .agreement import DETECTION_TASKS, disagreement
from .contenders import OURS, Contender
from .effort import Effort
from .process import Worker, WorkerError
from .result import Result
from .subject import Subject, read_arrays

# further than that from the reference, something else was computed
_TOLERANCES = {"float32": 1e-3, "float16": 0.01, "bfloat16": 0.05, "int8": 0.2}
# rounding decides here and there which of two overlapping boxes goes
_DETECTION_TOLERANCE = 0.1


class Entry:
    """A contender on a network: its result and, while it is in the race, its process."""

    def __init__(
        self, contender: Contender, subject: Subject, task: str, inputs: Sequence[np.ndarray], effort: Effort
    ) -> None:
        self.contender = contender
        self.subject = subject
        self.task = task
        self.inputs = inputs
        self.result = Result(
            network=subject.model,
            contender=contender.name,
            version=contender.version(),
            settings=contender.settings,
            dtype=subject.dtype,
        )
        self._effort = effort
        self._worker: Worker | None = None

    def build(self) -> None:
        """Have what is done ahead of time done."""
        if self.subject.dtype not in self.contender.dtypes:
            self.result.failure = f"no {self.subject.dtype} on a CPU"
            return
        with self._guarded(), self._start("build") as worker:
            self._note(worker.answer())

    def start(self, stack: contextlib.ExitStack) -> None:
        """Start the process that is timed and have it load the network."""
        if self.result.failure is not None:
            return
        with self._guarded():
            self._worker = stack.enter_context(self._start("run"))
            self._note(self._worker.answer())
            self.result.size_bytes = self.contender.size_bytes(self.subject)

    def check(self, reference: Sequence[np.ndarray]) -> None:
        """Take a contender out of the race that computes something else than the reference."""
        if self.result.failure is not None:
            return
        outputs = read_arrays(self.subject.output(self.contender.name))
        shapes = [[list(array.shape) for array in arrays] for arrays in (outputs, reference)]
        if shapes[0] != shapes[1]:
            self._fail(f"computes something else: outputs {shapes[0]}, expected {shapes[1]}")
            return
        error = disagreement(outputs, reference, self.task)
        detects = self.task in DETECTION_TASKS
        tolerance = _DETECTION_TOLERANCE if detects else _TOLERANCES[str(self.subject.dtype)]
        if not error <= tolerance:
            kind = "share of objects that differ" if detects else "relative error"
            self._fail(f"computes something else: {kind} {error:.1e}, of which {tolerance:.0e} can be rounding")
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

    def _note(self, fields: dict[str, Any]) -> None:
        """Take over what a worker answered into the result."""
        for name, value in fields.items():
            setattr(self.result, name, value)

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
