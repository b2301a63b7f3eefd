# SPDX-License-Identifier: Apache-2.0
"""Which task to spend the next trials on: where the network gains most."""

from __future__ import annotations

from dataclasses import dataclass, field

from .tasks import TuningTask

PATIENCE = 32
"""trials without a gain of `MIN_GAIN` after which a task is done"""
MIN_GAIN = 0.005
# weight of what the last trials gained against what later ones may gain, as MetaSchedule's gradient scheduler has it
_ALPHA, _WINDOW = 0.2, 3


@dataclass
class TaskState:
    """How far a task is."""

    task: TuningTask
    default_seconds: float | None = None
    """of the schedule that runs where nothing is tuned; None until it is measured or where it fails"""
    history: list[float] = field(default_factory=list)
    """seconds of each trial, `FAILED` for failures, in order"""
    batch_bests: list[float] = field(default_factory=list)
    """the best seconds after each batch of trials"""
    final_seconds: float | None = None
    """of the winner, measured side by side with the default at the end of a run"""
    stopped: str = ""
    """why no more trials make sense"""

    @property
    def best(self) -> float | None:
        """The least seconds so far, the default's included; None where nothing ran."""
        if self.final_seconds is not None:
            return self.final_seconds
        known = [*self.history, *([self.default_seconds] if self.default_seconds is not None else [])]
        return min(known, default=None)

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
        hoped = best / max(1, len(bests))
        return self.task.calls * (_ALPHA * gained + (1 - _ALPHA) * hoped)


def next_state(states: list[TaskState]) -> TaskState | None:
    """Return the state of the task to go on with, or None where all are done.

    Each task gets a batch first, the longest first; then the greatest gradient decides.
    """
    for state in states:
        if not state.stopped and state.stale >= PATIENCE:
            state.stopped = "no gain"
    open_states = [state for state in states if not state.stopped]
    fresh = [state for state in open_states if not state.batch_bests]
    if fresh:
        return max(fresh, key=lambda state: state.task.calls * (state.best or 0.0))
    return max(open_states, key=TaskState.gradient, default=None)
