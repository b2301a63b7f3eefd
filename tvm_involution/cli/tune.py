# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution tune`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .command import Command
from .interrupt import check_interrupt
from .options import network_options
from .words import Number, left_out_lines, print_table

if TYPE_CHECKING:
    from ..tuning.scheduler import TaskState
    from ..tuning.tuner import TuningProgress

_ROWS = 18


@click.command("tune", cls=Command)
@click.argument("model")
@network_options
@click.option("--trials", type=click.IntRange(1), help="Candidates to measure. [default: 2000 without --minutes]")
@click.option("--minutes", type=Number(0, min_open=True), help="Time to spend, play-off and comparison included.")
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path),
    help="Folder of tuning logs. [default: $XDG_DATA_HOME/tvm-involution/tuning_logs, in ~/.local/share where unset]",
)
@click.option("--rpc", metavar="HOST:PORT", help="Measure on devices registered at this TVM RPC tracker.")
@click.option("--rpc-key", metavar="KEY", help="The devices' key at the tracker.")
@click.option(
    "--compare/--no-compare",
    default=True,
    help="At the end run the network without and with what was found. [default: --compare]",
)
@click.option("--dry-run", is_flag=True, help="Show the tasks and stop.")
def tune_command(
    model: str,
    target: str,
    batch: int | None,
    dtype: str | None,
    image_size: tuple[int, int] | None,
    trials: int | None,
    minutes: float | None,
    log_dir: Path | None,
    rpc: str | None,
    rpc_key: str | None,
    compare: bool,
    dry_run: bool,
) -> None:
    """Search the fastest schedules of MODEL's kernels for a target; `compile` uses what is found.

    Stop it whenever you like: the same command goes on where it was. Nothing else should run on the machine.

    \b
    Examples:
      tvm-involution tune rednet50 --dry-run
      tvm-involution tune rednet50 --minutes 30
      tvm-involution tune rednet50 --trials 2000 --log-dir tuning_logs
      tvm-involution tune rednet50 --target '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72",
        "num-cores": 4}' --rpc 192.168.0.2:9190 --rpc-key rpi4
    """
    if dry_run:
        _show_tasks(model, target, batch, dtype, image_size, log_dir)
        return
    from ..tuning.tuner import tune

    # TVM starts its processes by `python -m`, which looks for modules in the current folder first; from Python 3.11 on
    # it can be told not to, and then has to be told where a package is that is not installed
    os.environ["PYTHONSAFEPATH"] = "1"
    package = str(Path(__file__).parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    with _display() as show:
        result = tune(
            model,
            target,
            trials=trials,
            minutes=minutes,
            batch=batch,
            dtype=dtype,
            image_size=image_size,
            log_dir=log_dir,
            rpc=rpc,
            rpc_key=rpc_key,
            compare=compare,
            progress=show,
        )
    _summarize(result)


def _show_tasks(
    model: str,
    target: str,
    batch: int | None,
    dtype: str | None,
    image_size: tuple[int, int] | None,
    log_dir: Path | None,
) -> None:
    from ..frontend.network import resolve_network
    from ..records.tuning_records import TuningRecords
    from ..target import resolve_target
    from ..tuning.tasks import extract_tasks

    resolved = resolve_target(target)
    tasks = extract_tasks(resolve_network(model, image_size=image_size), resolved, batch=batch, dtype=dtype)
    records = TuningRecords(resolved, log_dir if log_dir is not None and log_dir.is_dir() else None)
    total = sum(task.calls * task.operations for task in tasks) or 1.0
    rows = []
    for task in tasks:
        found = records.find(task.mod["main"])
        rows.append(
            [
                task.name,
                " ".join("x".join(map(str, shape)) for shape in task.shapes),
                f"{task.operations / 1e6:.1f}",
                str(task.calls),
                f"{task.calls * task.operations / total:.1%}",
                task.space or "none",
                found.origin if found is not None else "",
            ]
        )
    columns = ["task", "shapes", "Mop", "calls", "weight", "space", "record"]
    print_table(f"{model}: {len(tasks)} tasks, {total / 1e9:.2f} Gop", columns, rows)
    for line in left_out_lines([(t.name, t.calls * t.operations, t.left_out) for t in tasks], "operations"):
        click.echo(line)


@contextmanager
def _display() -> Iterator[Callable[[TuningProgress], None]]:
    """Yield what shows the progress: a live table on a terminal, a line a step elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as live:

            def redraw(run: TuningProgress) -> None:
                check_interrupt()
                live.update(Group(Text(_status(run)), _table(run)), refresh=True)

            yield redraw
        return
    last = [""]

    def print_line(run: TuningProgress) -> None:
        check_interrupt()
        status = _status(run)
        if status != last[0]:
            click.echo(status)
            last[0] = status

    yield print_line


def _status(run: TuningProgress) -> str:
    words = [f"[{run.clock.elapsed / 60:5.1f} min] {run.phase}: {run.trials} trials"]
    if run.max_trials is not None:
        words[0] += f" of {run.max_trials}"
    if run.minutes_left is not None:
        words.append(f"{run.minutes_left:.1f} min left")
    if run.states:
        before, after = run.network_seconds(False), run.network_seconds(True)
        words.append(f"kernels {after * 1e3:.2f} ms (defaults {before * 1e3:.2f}, {_gain_text(run)})")
        done = sum(bool(state.stopped) for state in run.states)
        words.append(f"{done} of {len(run.states)} tasks done")
    return ", ".join(words)


def _gain_text(run: TuningProgress) -> str:
    low, high = run.gain
    return f"{low:.2f}x" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f}x to {high:.2f}x"


def _table(run: TuningProgress) -> Table:
    table = Table("task", "space", "calls", "trials", "failed", "default us", "best us", "gain", "network us", "")
    for state in sorted(run.states, key=lambda state: state.seconds, reverse=True)[:_ROWS]:
        table.add_row(*_row(state))
    if len(run.states) > _ROWS:
        table.add_row(f"and {len(run.states) - _ROWS} shorter ones")
    return table


def _row(state: TaskState) -> list[str]:
    failed = sum(seconds >= 1e9 for seconds in state.history)
    best, default = state.best, state.default_seconds
    known = best is not None and best < 1e9
    return [
        state.task.name[:40],
        " + ".join(filter(None, [state.task.rule, "MetaSchedule" if state.task.evolves else ""])),
        str(state.task.calls),
        str(len(state.history)),
        str(failed or ""),
        f"{default * 1e6:.1f}" if default is not None else "?",
        f"{best * 1e6:.1f}" if known and best is not None else "?",
        f"{default / best:.2f}x" if known and best and default else "",
        f"{state.seconds * 1e6:.0f}" if known else "",
        state.stopped,
    ]


def _summarize(run: TuningProgress) -> None:
    from ..tuning.tuner import MEASURED, REPORT

    rows = [_row(state) for state in sorted(run.states, key=lambda state: state.seconds, reverse=True)]
    print_table(
        "kernels",
        ["task", "space", "calls", "trials", "failed", "default us", "best us", "gain", "network us", "ended"],
        rows,
    )
    untried = [(s.task.name, s.seconds, "" if s.history else s.stopped) for s in run.states]
    for line in left_out_lines(untried, "the kernels' time"):
        click.echo(line)
    table = run.clock.table()
    print_table(
        "where the time went",
        ["what", "s", "share"],
        [[what, f"{value:.1f}", f"{value / run.clock.elapsed:.0%}"] for what, value in table.items()],
    )
    before, after = run.network_seconds(False), run.network_seconds(True)
    click.echo(
        f"{run.own_trials} trials, {run.clock.elapsed / 60:.1f} min, {run.trials_a_second:.1f} trials a second: the "
        f"kernels take {after * 1e3:.2f} ms, {before * 1e3:.2f} ms with the rules' defaults ({_gain_text(run)})"
    )
    if (found := run.side_by_side) is not None:
        low, high = found.spread
        click.echo(
            f"  network  {median(found.tuned_ms):.2f} ms, {median(found.default_ms):.2f} ms untuned, in turns: "
            f"{found.gain:.2f}x (half of the rounds {low:.2f}x to {high:.2f}x)"
        )
    else:
        click.echo(f"  network  not run as a whole: {run.not_compared}")
    click.echo(f"  records  {run.folder}")
    click.echo(f"  report   {run.folder / MEASURED / REPORT}")
    picture = run.folder / MEASURED / "curves.png"
    try:
        run.draw_curves(picture)
        click.echo(f"  curves   {picture}")
    except ImportError:
        click.echo("  curves   not drawn: pip install matplotlib")
