# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution logs`: merge and prune tuning logs, report what they cover."""

from __future__ import annotations

from pathlib import Path

import click

from .command import Command
from .options import network_options
from .words import left_out_lines, print_table


@click.group("logs")
def logs_command() -> None:
    """Merge and prune folders of tuning logs, report what they cover.

    \b
    Examples:
      tvm-involution logs coverage rednet50 --target llvm
      tvm-involution logs merge monday tuesday --into tuning_logs
      tvm-involution logs prune tuning_logs --keep 1
    """


@logs_command.command("merge", cls=Command)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", required=True, type=click.Path(path_type=Path), help="The folder of logs to add to.")
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Records a workload.")
def merge_command(sources: tuple[Path, ...], into: Path, keep: int) -> None:
    """Add the records of SOURCES, folders of tuning logs, to another; the fastest stay.

    \b
    Examples:
      tvm-involution logs merge monday tuesday --into tuning_logs
    """
    from ..tuning.maintain import merge

    for key, count in merge(sources, into, keep).items():
        click.echo(f"{into / key}: {count} records")


@logs_command.command("prune", cls=Command)
@click.argument("logs", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(1), default=3, show_default=True, help="Records a workload.")
def prune_command(logs: Path, keep: int) -> None:
    """Keep the fastest records of each workload in LOGS, of those that still apply.

    \b
    Examples:
      tvm-involution logs prune tuning_logs --keep 1
    """
    from ..tuning.maintain import prune

    for key, (before, after) in prune(logs, keep).items():
        click.echo(f"{logs / key}: {after} of {before} records kept")


@logs_command.command("coverage", cls=Command)
@click.argument("model")
@network_options
@click.option(
    "--tuning-logs",
    type=click.Path(path_type=Path),
    help="Folder of logs. [default: $XDG_DATA_HOME/tvm-involution/tuning_logs, the shipped]",
)
def coverage_command(
    model: str,
    target: str,
    batch: int | None,
    dtype: str | None,
    image_size: tuple[int, int] | None,
    tuning_logs: Path | None,
) -> None:
    """Show which kernels of MODEL have a record for a target, and which have not.

    \b
    Examples:
      tvm-involution logs coverage rednet50
      tvm-involution logs coverage rednet50 --target nvidia/nvidia-h100 --dtype float16
    """
    from ..frontend.network import resolve_network
    from ..records.tuning_records import TuningRecords
    from ..target import resolve_target
    from ..tuning.tasks import extract_tasks

    resolved = resolve_target(target)
    records = TuningRecords(resolved, tuning_logs)
    tasks = extract_tasks(resolve_network(model, image_size=image_size), resolved, batch=batch, dtype=dtype)
    rows = []
    for task in tasks:
        found = records.find(task.mod["main"])
        rows.append([task.name, str(task.calls), found.origin if found is not None else "none"])
    print_table(model, ["task", "calls", "record of"], rows)
    covered = sum(row[2] != "none" for row in rows)
    for line in left_out_lines([(t.name, t.calls * t.operations, t.left_out) for t in tasks], "operations"):
        click.echo(line)
    click.echo(f"{covered} of {len(rows)} kernels have a record")
