# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution bench`."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..bench.chart import check_chart, draw_chart
from ..bench.compare import Effort, compare, time_layers
from ..bench.contenders import PEERS, select_peers
from ..bench.layer import LayerTable
from ..bench.library_subject import subject_of_library
from ..bench.result import Comparison
from ..bench.subject import Subject
from ..errors import UserError
from ..files import atomic_write
from ..runtime.library_file import read_metadata
from ..runtime.threads import thread_count
from ..zoo import get_model
from .words import ImageSize, print_table

_COLUMNS = [
    *("in", "version", "median ms", "min ms", "to ours", "rel. error"),
    *("build s", "load ms", "first ms", "peak MiB", "file MiB"),
]
_LAYER_COLUMNS = [
    *("kernel", "what", "arguments", "calls", "Mop", "KiB", "us"),
    *("GFLOP/s", "of peak", "GB/s", "of copy", "of total", "schedule"),
]


class Peers(click.ParamType):
    """`PEER[,PEER...]`, or `none`."""

    name = "PEER[,PEER...]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a tuple of names."""
        words = tuple(word.strip() for word in str(value).split(",") if word.strip())
        return () if words == ("none",) else words


@click.command("bench")
@click.argument("model", metavar="MODEL|LIB.so")
@click.option(
    "--against",
    type=Peers(),
    help=f"Peers: some of {', '.join(peer.name for peer in PEERS)}; or none. [default: those installed]",
)
@click.option("--batch", type=click.IntRange(min=1), help="Pictures in a call. [default: 1]")
@click.option("--dtype", help="float32, float16 or bfloat16. [default: float32]")
@click.option("--image-size", type=ImageSize(), help="Height and width of the input. [default: the network's own]")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights, as `compile` takes them.")
@click.option("--tuning-logs", type=click.Path(path_type=Path), help="Folder of tuning logs, as `compile` takes it.")
@click.option("--per-layer", is_flag=True, help="Show our network's kernels: time, operations, bytes, share of peak.")
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True, help="Turns of each contender.")
@click.option("--calls", type=click.IntRange(min=1), default=10, show_default=True, help="Inferences a turn.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
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

    MODEL is what `compile` takes. Of LIB.so, peers run the zoo network that it says it is. Every contender has a
    process of its own and the same number of threads (TVM_NUM_THREADS, else one a physical core), and all take turns.
    Nothing else should run on the machine. What the columns mean: docs/benchmarks.md.

    \b
    Examples:
      tvm-involution bench rednet50
      tvm-involution bench rednet50 --batch 8 --against torch,openvino --json rednet50.json --chart rednet50.png
      tvm-involution bench rednet50 --dtype bfloat16
      tvm-involution bench rednet50 --against none --per-layer
      tvm-involution bench rednet50.so
    """
    for file in (json_file, chart_file):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"cannot write {file}: no such folder; create {file.absolute().parent} or choose another")
    if chart_file is not None:
        check_chart(chart_file)
    peers = select_peers(against)
    if model.endswith(".so"):
        if per_layer:
            raise UserError("--per-layer needs the network, not a library; name what the library was compiled from")
        if not _in_zoo(read_metadata(model).name):
            if against:
                raise UserError(
                    f"{model} is no network of the zoo, so peers cannot run it; time it alone with --against none"
                )
            peers = []
        subject = _library(Path(model), bool(peers), **sizes)
    else:
        if not model.endswith(".pt2") and ":" not in model:
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
        data = comparison.to_json() | (layers.to_json() if layers is not None else {})
        with atomic_write(json_file) as temporary:
            temporary.write_text(json.dumps(data, indent=1))
    if chart_file is not None:
        draw_chart(comparison, chart_file)


def print_comparison(comparison: Comparison) -> None:
    """Print the results as a table, the failures in words below it."""
    rows = [
        [
            result.contender,
            result.version,
            _figure(result.median_ms, ".2f") if result.failure is None else "failed",
            _figure(result.min_ms, ".2f"),
            _figure(result.ratio, ".2f", "x"),
            _figure(result.relative_error, ".0e"),
            _figure(result.build_s, ".1f"),
            _figure(result.load_s, ".0f", scale=1e3),
            _figure(result.first_result_s, ".0f", scale=1e3),
            _figure(result.peak_memory_bytes, ".0f", scale=2**-20),
            _figure(result.size_bytes, ".1f", scale=2**-20),
        ]
        for result in comparison.results
    ]
    print_table(f"{comparison.results[0].network}: {comparison.title()}", _COLUMNS, rows)
    for result in comparison.results:
        if result.failure is not None:
            click.echo(f"{result.contender} failed: {result.failure}")


def print_layers(table: LayerTable) -> None:
    """Print the kernels, the one that takes longest first."""
    rows = [
        [
            layer.kernel,
            layer.kind,
            _shapes_text(layer.shapes),
            str(layer.calls),
            f"{layer.operations / 1e6:.2f}",
            f"{layer.bytes / 1024:.0f}",
            f"{layer.microseconds:.1f}",
            f"{layer.gflops:.3g}",
            f"{layer.gflops / table.peak_gflops:.0%}",
            f"{layer.gbs:.3g}",
            f"{layer.gbs / table.peak_gbs:.0%}",
            f"{layer.total_us / table.total_us:.1%}",
            f"{layer.schedule} {layer.rule}" if layer.schedule == "rule" else layer.schedule,
        ]
        for layer in table.layers
    ]
    title = (
        f"{table.network_us / 1e3:.2f} ms an inference ({table.total_us / 1e3:.2f} ms in the kernels while they are "
        f"watched), {table.operations / 1e9:.3f} G operations; this machine: "
        f"{table.peak_gflops:.0f} GFLOP/s in a matrix product, {table.peak_gbs:.1f} GB/s in a copy"
    )
    print_table(title, _LAYER_COLUMNS, rows)


def _shapes_text(shapes: Sequence[tuple[int, ...]]) -> str:
    """Name the arguments: packed weights by their window; not what has a value a channel, nor residuals."""
    first, *others, output = shapes
    shown = [first, *(shape[1:3] if len(shape) == 5 else shape for shape in others if _is_operand(shape, output))]
    return " → ".join(", ".join("x".join(map(str, shape)) for shape in group) for group in (shown, [output]))


def _is_operand(shape: tuple[int, ...], output: tuple[int, ...]) -> bool:
    return math.prod(shape) > shape[-1] and shape != output


def _figure(value: float | None, form: str, unit: str = "", scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:{form}}{unit}"


def _in_zoo(name: str) -> bool:
    try:
        get_model(name)
    except UserError:
        return False
    return True


def _library(path: Path, peers: bool, batch: int | None, checkpoint: Path | None, **fixed: Any) -> Subject:
    if given := [name for name, value in fixed.items() if value is not None]:
        raise UserError(f"{path} is compiled already; leave out --{given[0].replace('_', '-')}")
    return subject_of_library(path, thread_count(), batch=batch, checkpoint=checkpoint, peers=peers)
