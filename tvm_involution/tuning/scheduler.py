# SPDX-License-Identifier: Apache-2.0
"""Which task to spend the next trials on: where the network gains most."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from .tasks import TuningTask

PATIENCE = 32
"""trials without a gain of `MIN_GAIN` after which a task is done"""
MIN_GAIN = 0.005
WORTH = 0.01
"""the share of the network's time from which a task gets trials first, and MetaSchedule's own space"""
BATCH = 24
"""trials of a task before the next is chosen"""
# weight of what the last trials gained against what later ones may gain, as MetaSchedule's gradient scheduler has it
_ALPHA, _WINDOW = 0.2, 3


@dataclass(frozen=True)
class Contest:
    """The play-off of a task: seconds of each round, in turn."""

    default: tuple[float, ...]
    """empty where the default does not run"""
    finalists: tuple[tuple[float, ...], ...]
    winner: int | None
    """the finalist with the least median; None where that is the default"""

    @property
    def best(self) -> tuple[float, ...]:
        """The rounds of the winner."""
        return self.default if self.winner is None else self.finalists[self.winner]


@dataclass(eq=False)
class TaskState:
    """How far a task is."""

    task: TuningTask
    default_times: list[float] = field(default_factory=list)
    """seconds of what runs where nothing is tuned, measured again beside each batch; none where it fails"""
    history: list[float] = field(default_factory=list)
    """seconds of each trial, `FAILED` for failures, in order"""
    batch_bests: list[float] = field(default_factory=list)
    """the best seconds after each batch of trials"""
    contest: Contest | None = None
    """the best, measured side by side with the default at the end of a run"""
    stopped: str = ""
    """why no more trials make sense"""

    @property
    def default_seconds(self) -> float | None:
        """The default's seconds: the least so far, so that luck does not count as gain."""
        if self.contest is not None and self.contest.default:
            return statistics.median(self.contest.default)
        return min(self.default_times, default=None)

    @property
    def typical_default_seconds(self) -> float | None:
        """The median of the default's seconds."""
        return statistics.median(self.default_times) if self.default_times else None

    @property
    def best(self) -> float | None:
        """The least seconds so far, the default's included; None where nothing ran."""
        if self.contest is not None:
            return statistics.median(self.contest.best)
        return min([*self.history, *self.default_times], default=None)

    @property
    def seconds(self) -> float:
        """The seconds of the network that the task takes."""
        return self.task.calls * (self.best or 0.0)

    @property
    def stale(self) -> int:
        """The number of trials since the last real gain."""
        best = self.default_seconds if self.default_seconds is not None else float("inf")
        last = 0
        for number, seconds in enumerate(self.history, 1):
            if seconds < best * (1 - MIN_GAIN):
                best, last = seconds, number
        return len(self.history) - last

    def gradient(self) -> float:
        """The seconds of the network that one more batch is expected to gain."""
        best = self.best
        if best is None:
            return 0.0
        bests = self.batch_bests
        window = min(_WINDOW, len(bests) - 1)
        gained = (bests[-1 - window] - bests[-1]) / window if window > 0 else 0.0
        hoped = best / max(1.0, len(self.history) / BATCH)
        return self.task.calls * (_ALPHA * gained + (1 - _ALPHA) * hoped)


def worth_it(states: Sequence[TaskState]) -> list[TaskState]:
    """Return the states of the tasks with a share of the network's time that is worth trials, the longest first."""
    total = sum(state.seconds for state in states)
    return sorted((s for s in states if s.seconds >= WORTH * total), key=lambda state: -state.seconds)


def next_state(states: Sequence[TaskState]) -> TaskState | None:
    """Return the state of the task to go on with, or None where all are done.

    Each task that is worth it gets a few trials first, the longest first; then the greatest gradient decides.
    """
    for state in states:
        if not state.stopped and state.stale >= PATIENCE:
            state.stopped = "no gain"
    if fresh := untried(states):
        return fresh[0]
    return max((state for state in states if not state.stopped), key=TaskState.gradient, default=None)


def untried(states: Sequence[TaskState]) -> list[TaskState]:
    """Return the states of tasks that are worth trials and had none, the longest first."""
    return [state for state in worth_it(states) if not state.stopped and not state.history]


def gain_and_spread(states: Sequence[TaskState]) -> tuple[float, float]:
    """Return between what the network's kernels became faster, as the defaults' times vary.

    Where there was a play-off: in its slowest and its fastest round.
    """
    contested = [state for state in states if state.contest is not None and state.contest.default]
    if contested:
        gains = []
        for i in range(min(len(state.contest.best) for state in contested if state.contest)):
            before = after = 0.0
            for state in states:
                contest = state.contest if state in contested else None
                before += state.task.calls * (contest.default[i] if contest else state.default_seconds or 0.0)
                after += state.task.calls * (contest.best[i] if contest else state.best or 0.0)
            gains.append(before / after if after else 1.0)
        return min(gains), max(gains)
    after = sum(state.seconds for state in states if state.default_times)
    if not after:
        return 1.0, 1.0
    least = sum(state.task.calls * (state.default_seconds or 0.0) for state in states)
    typical = sum(state.task.calls * (state.typical_default_seconds or 0.0) for state in states)
    return least / after, max(least, typical) / after
