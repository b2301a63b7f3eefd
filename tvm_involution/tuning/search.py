# SPDX-License-Identifier: Apache-2.0
"""What to measure next of a task: the points of its rule's space, then what MetaSchedule evolves.

A rule's space is small: its points are listed, not sampled, so that none comes twice and the end is known. First comes
each structural variant as the rule has it, then the points next to the best so far.

Programs that only a rule for anything takes (`Reduction`, `Elementwise` and their like on GPUs) get MetaSchedule's own
space beside that rule's few points, where they are worth it. There candidates evolve, ranked by a cost model.
"""

from __future__ import annotations

import itertools
import logging
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import tvm
import tvm_ffi
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from ..records.database import FAILED
from .tasks import TuningTask

_BATCH = 16
# schedules of a generation, and how often they mutate before a batch is taken: MetaSchedule's 512 and 4 take longer
# than to measure what they propose
_POPULATION, _GENERATIONS = 64, 3
# points of which the neighbours come first
_PARENTS = 3


class Search(Protocol):
    """Proposes schedules of one task, each once."""

    def propose(self, count: int) -> list[s_tir.Schedule]:
        """Return up to `count` schedules, none where there are no more."""

    def learn(self, seconds: Sequence[float | None]) -> None:
        """Take what was measured of the last proposal; `FAILED` where that went wrong, None where nothing is known."""


@dataclass(frozen=True)
class _Point:
    variant: int
    decisions: tuple[int, ...]

    def distance(self, other: _Point) -> float:
        """Return in how many decisions two points differ; those of different variants share nothing."""
        if self.variant != other.variant:
            return math.inf
        return sum(a != b for a, b in zip(self.decisions, other.decisions, strict=True))


class PointSearch:
    """Every point of a rule's space."""

    def __init__(
        self, mod: tvm.IRModule, default: s_tir.Schedule, variants: Sequence[s_tir.Schedule], known: dict[str, float]
    ) -> None:
        """List the points.

        Args:
            known: seconds of what has been measured, by the trace's text.
        """
        self._mod, self._default, self._variants = mod, default, variants
        self._seconds: dict[_Point, float] = {}
        first = [_Point(i, _decisions(variant)) for i, variant in enumerate(variants)]
        every = [_Point(i, tuple(decisions)) for i, variant in enumerate(variants) for decisions in _choices(variant)]
        random.shuffle(every)
        self._left = list(dict.fromkeys([*first, *every]))
        self._asked: list[_Point] = []
        if known:
            self._left = [point for point in self._left if not self._recall(point, known)]

    def __len__(self) -> int:
        return len(self._left)

    def propose(self, count: int) -> list[s_tir.Schedule]:
        """See `Search`."""
        found: list[s_tir.Schedule] = []
        self._asked = []
        while self._left and len(found) < count:
            point = min(self._left, key=self._rank)
            self._left.remove(point)
            sch = s_tir.Schedule(self._mod)
            try:
                self._trace(point).apply_to_schedule(sch, remove_postproc=False)
            except (RuntimeError, ValueError):
                continue
            # the default is measured beside all of them
            if not tvm_ffi.structural_equal(sch.mod, self._default.mod):
                found.append(sch)
                self._asked.append(point)
        return found

    def learn(self, seconds: Sequence[float | None]) -> None:
        """See `Search`."""
        asked = zip(self._asked, seconds, strict=True)
        self._seconds.update((point, value) for point, value in asked if value is not None)

    def _rank(self, point: _Point) -> tuple[float, int]:
        if point.decisions == _decisions(self._variants[point.variant]):
            return 0.0, 0
        parents = sorted(self._seconds, key=self._seconds.__getitem__)[:_PARENTS]
        return min(((point.distance(parent), i) for i, parent in enumerate(parents)), default=(math.inf, 0))

    def _recall(self, point: _Point, known: dict[str, float]) -> bool:
        found = known.get(str(self._trace(point)))
        if found is not None:
            self._seconds[point] = found
        return found is not None

    def _trace(self, point: _Point) -> s_tir.schedule.Trace:
        trace = self._variants[point.variant].trace
        for instruction, decision in zip(_sampled(trace), point.decisions, strict=True):
            trace = trace.with_decision(instruction, decision, remove_postproc=False)
        return trace


def _sampled(trace: s_tir.schedule.Trace) -> list[s_tir.schedule.Instruction]:
    """Return the instructions of `choose`, in order."""
    return [inst for inst in trace.insts if inst.kind.name == "SampleCategorical"]


def _decisions(variant: s_tir.Schedule) -> tuple[int, ...]:
    trace = variant.trace
    return tuple(int(trace.decisions[inst]) for inst in _sampled(trace))


def _choices(variant: s_tir.Schedule) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(len(inst.attrs[0])) for inst in _sampled(variant.trace)))


class EvolvedSearch:
    """MetaSchedule's own space of a program."""

    def __init__(
        self,
        task: TuningTask,
        known: dict[str, float],
        database: ms.Database,
        model: ms.CostModel,
        logger: logging.Logger,
        threads: int,
    ) -> None:
        """Make the space.

        Raises:
            RuntimeError, ValueError: MetaSchedule cannot schedule the program.
        """
        # those that a target of tensor intrinsics would get refer to all intrinsics
        kind = "cuda" if task.target.kind.name == "cuda" else "llvm"
        with _no_tensor_intrinsics(), task.target:
            self._context = ms.TuneContext(
                task.mod,
                target=task.target,
                space_generator=ms.space_generator.PostOrderApply(sch_rules=kind, postprocs=kind, mutator_probs=kind),
                search_strategy=ms.search_strategy.EvolutionarySearch(
                    population_size=_POPULATION, init_min_unmeasured=_BATCH, genetic_num_iters=_GENERATIONS
                ),
                task_name=task.name,
                num_threads=threads,
                logger=logger,
            ).clone()
        space = self._context.generate_design_space()
        self._context.pre_tuning(100_000, _BATCH, space, database, model)
        self._model, self._known = model, set(known)
        self._asked: list[ms.MeasureCandidate] = []

    def propose(self, count: int) -> list[s_tir.Schedule]:
        """See `Search`.

        Raises:
            RuntimeError, ValueError: MetaSchedule fails.
        """
        found = self._context.generate_measure_candidates() or []
        self._asked = [candidate for candidate in found if str(candidate.sch.trace) not in self._known][:count]
        self._known.update(str(candidate.sch.trace) for candidate in self._asked)
        return [candidate.sch for candidate in self._asked]

    def learn(self, seconds: Sequence[float | None]) -> None:
        """See `Search`."""
        results = [ms.runner.RunnerResult([FAILED if value is None else value], None) for value in seconds]
        self._context.search_strategy.notify_runner_results(self._asked, results)
        judged = [i for i, value in enumerate(seconds) if value is not None]
        if judged:
            # which fits itself anew only after a fifth more than the last time
            self._model.update(self._context, [self._asked[i] for i in judged], [results[i] for i in judged])


@contextmanager
def _no_tensor_intrinsics() -> Iterator[None]:
    """Keep a TuneContext from importing the tensor intrinsics of all architectures, which takes 40 s (TVM 0.27)."""
    name = "tvm.s_tir.tensor_intrin"
    stand_in = None if name in sys.modules else ModuleType(name)
    if stand_in is not None:
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        if stand_in is not None:
            del sys.modules[name]
