# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution bench`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..bench.chart import check_chart, draw_chart
from ..bench.compare import compare, time_layers
from ..bench.contenders import PEERS, select_peers
from ..bench.effort import Effort
from ..bench.library_subject import subject_of_library
from ..bench.subject import Subject
from ..errors import UserError
from ..files import check_apart, check_writable, write_json
from ..runtime import LibraryMetadata
from ..runtime.library_file import read_metadata
from ..runtime.metadata import INT8
from ..runtime.threads import thread_count
from ..zoo import get_model, list_models
from .bench_tables import print_comparison, print_layers
from .command import Command
from .words import ImageSize, Number


class Peers(click.ParamType):
    """`PEER[,PEER...]`, or `none`."""

    name = "PEER[,PEER...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of names."""
        words = tuple(word.strip() for word in str(value).split(",") if word.strip())
        return () if words == ("none",) else words


@click.command("bench", cls=Command)
@click.argument("model", metavar="MODEL|LIB.so")
@click.option(
    "--against",
    type=Peers(),
    help=f"Peers: some of {', '.join(peer.name for peer in PEERS)}; or none. [default: those installed]",
)
@click.option("--batch", type=click.IntRange(min=1), help="Pictures in a call. [default: 1]")
@click.option("--dtype", help="float32, float16, bfloat16 or int8. [default: float32]")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="For int8, as `compile` takes it, for all contenders. [default: random pictures]",
)
@click.option("--image-size", type=ImageSize(), help="Height and width of the input. [default: the network's own]")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights, as `compile` takes them.")
@click.option("--tuning-logs", type=click.Path(path_type=Path), help="Folder of tuning logs, as `compile` takes it.")
@click.option("--per-layer", is_flag=True, help="Show our network's kernels: time, operations, bytes, share of peak.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Turns of each contender.")
@click.option("--calls", type=click.IntRange(min=1), default=10, show_default=True, help="Inferences a turn.")
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    default=900.0,
    show_default=True,
    help="Seconds a contender may take to build, to load or for a turn.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="A file for all figures.")
@click.option("--chart", "chart_file", type=click.Path(path_type=Path), help="A picture for the medians, as bars.")
def bench_command(
    model: str,
    against: tuple[str, ...] | None,
    per_layer: bool,
    rounds: int,
    calls: int,
    timeout: float,
    json_file: Path | None,
    chart_file: Path | None,
    **sizes: Any,
) -> None:
    """Time MODEL, compiled for this CPU, or LIB.so beside other runtimes.

    MODEL is what `compile` takes. Of LIB.so, peers run what it says it was compiled from. Every contender has a
    process of its own and the same number of threads (TVM_NUM_THREADS, else one a physical core), and all take turns.
    Nothing else should run on the machine. What the columns mean: docs/benchmarks.md.

    \b
    Examples:
      tvm-involution bench rednet50
      tvm-involution bench rednet50 --batch 8 --against torch,openvino --json rednet50.json --chart rednet50.png
      tvm-involution bench rednet50 --dtype bfloat16
      tvm-involution bench rednet50 --dtype int8 --calibration photos
      tvm-involution bench rednet50 --against none --per-layer
      tvm-involution bench rednet50.so
    """
    from ..frontend.user_function import source_file

    for file in (json_file, chart_file):
        if file is not None:
            check_apart(file, model, source_file(model))
            check_writable(file)
    if chart_file is not None:
        check_chart(chart_file)
    if sizes["calibration"] is not None and sizes["dtype"] != INT8 and not model.endswith(".so"):
        raise UserError("calibration is for int8 alone; add --dtype int8, or leave out --calibration")
    peers = select_peers(against)
    if model.endswith(".so"):
        if per_layer:
            raise UserError("--per-layer needs the network, not a library; name what the library was compiled from")
        if not _is_named(read_metadata(model)):
            if against:
                raise UserError(
                    f"{model} was compiled from a module in memory, so peers cannot run it; time it alone with "
                    "--against none"
                )
            peers = []
        subject = _library(Path(model), bool(peers), **sizes)
    else:
        if not model.endswith(".pt2") and ":" not in model:
            from ..frontend.other_files import refuse_other_file

            refuse_other_file(model)
            get_model(model)  # an unknown name is told at once
        subject = Subject(model, thread_count(), **sizes)
    effort = Effort(rounds, calls, timeout)

    start = time.monotonic()
    console = Console(stderr=True)
    with console.status("starting") if console.is_terminal else contextlib.nullcontext() as status:

        def progress(text: str) -> None:
            if status is not None:
                status.update(f"{text} …")
            else:
                click.echo(f"[{time.monotonic() - start:5.1f} s] {text}")

        comparison = compare([subject], peers, effort, progress)
        layers = time_layers(subject, effort, progress) if per_layer else None

    print_comparison(comparison)
    if layers is not None:
        print_layers(layers)
    if json_file is not None:
        write_json(json_file, comparison.to_json() | (layers.to_json() if layers is not None else {}))
    if chart_file is not None:
        draw_chart(comparison, chart_file)
    if (failure := comparison.results[0].failure) is not None:
        raise click.ClickException(f"our library of {model} has no times: {failure}")


def _is_named(metadata: LibraryMetadata) -> bool:
    """Return whether a library says what it was compiled from."""
    return bool(metadata.model) or ":" in metadata.name or any(spec.name == metadata.name for spec in list_models())


def _library(path: Path, peers: bool, batch: int | None, checkpoint: Path | None, **fixed: Any) -> Subject:
    if given := [name for name, value in fixed.items() if value is not None]:
        raise UserError(f"{path} is compiled already; leave out --{given[0].replace('_', '-')}")
    return subject_of_library(path, thread_count(), batch=batch, checkpoint=checkpoint, peers=peers)
