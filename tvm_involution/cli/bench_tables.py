# SPDX-License-Identifier: Apache-2.0
"""The tables of `tvm-involution bench`; docs/benchmarks.md says what the columns mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

import click

from ..bench.layer import LayerTable
from ..bench.result import Comparison
from .words import print_table

_COLUMNS = [
    *("in", "version", "median ms", "min ms", "to ours", "rel. error"),
    *("build s", "load ms", "first ms", "peak MiB", "file MiB"),
]
_LAYER_COLUMNS = [
    *("kernel", "what", "arguments", "calls", "Mop", "KiB", "us"),
    *("GFLOP/s", "of peak", "GB/s", "of copy", "of total", "schedule"),
]


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
    for result in comparison.results[1:]:
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
    *inputs, output = shapes
    operands = (shape[1:3] if len(shape) == 5 else shape for shape in inputs[1:] if _is_operand(shape, output))
    shown = [*inputs[:1], *operands]
    return " → ".join(", ".join("x".join(map(str, shape)) for shape in group) for group in (shown, [output]))


def _is_operand(shape: tuple[int, ...], output: tuple[int, ...]) -> bool:
    return len(shape) > 0 and math.prod(shape) > shape[-1] and shape != output


def _figure(value: float | None, form: str, unit: str = "", scale: float = 1.0) -> str:
    return "-" if value is None else f"{value * scale:{form}}{unit}"
