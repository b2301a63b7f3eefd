# SPDX-License-Identifier: Apache-2.0
"""A picture of a tuning run: the network's estimated time, and each task's gain, over the trials."""

from __future__ import annotations

from pathlib import Path

from ..files import atomic_write
from ..records.database import FAILED, TuningDatabase, seconds
from .scheduler import TaskState

_TASKS = 10


def draw_curves(measured: Path, states: list[TaskState], picture: Path) -> None:
    """Draw what `measured`, a folder of everything measured, holds of these tasks, to the PNG `picture`.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    database = TuningDatabase(measured)
    owner = {database.memory.commit_workload(state.task.mod): number for number, state in enumerate(states)}
    best: list[float | None] = [None] * len(states)
    gains: list[list[float]] = [[] for _ in states]
    network: list[float] = []
    for record in database.all_records():
        number = owner.get(record.workload)
        if number is None:
            continue
        if seconds(record) < FAILED:
            before = best[number]
            best[number] = seconds(record) if before is None else min(before, seconds(record))
        now = best[number]
        if now is not None:
            gains[number].append(now)
        if all(value is not None for value in best):
            network.append(sum(state.task.calls * (value or 0.0) for state, value in zip(states, best, strict=True)))

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    left.plot([value * 1e3 for value in network], drawstyle="steps-post")
    left.set(xlabel="trials", ylabel="ms", title="sum of the network's kernels")
    left.grid(alpha=0.3)
    longest = sorted(range(len(states)), key=lambda i: -states[i].task.calls * (best[i] or 0.0))[:_TASKS]
    for number in longest:
        curve = gains[number]
        if curve:
            gain = [curve[0] / value for value in curve]
            right.plot(gain, drawstyle="steps-post", label=states[number].task.name[:32])
    right.set(xlabel="trials of the task", ylabel="times faster than its default", title="the longest tasks")
    right.legend(fontsize="x-small")
    right.grid(alpha=0.3)
    with atomic_write(picture) as path:
        figure.savefig(path, dpi=130)
    pyplot.close(figure)
