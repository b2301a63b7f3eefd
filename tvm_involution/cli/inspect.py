# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..runtime.library_file import read_metadata
from ..runtime.metadata import TensorSpec
from .command import Command
from .words import kernels_text


@click.command("inspect", cls=Command)
@click.argument("library", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect_command(library: Path, as_json: bool) -> None:
    """Show what a compiled LIBRARY is: inputs, outputs, target, weights' origin, how much of it was tuned.

    Loads no code, so it works for libraries of other machines too.

    \b
    Examples:
      tvm-involution inspect rednet50.so
      tvm-involution inspect rednet50.so --json
    """
    metadata = read_metadata(library)
    if as_json:
        click.echo(metadata.to_json())
        return
    rows = [
        ("network", f"{metadata.name} ({metadata.task}), {metadata.parameters / 1e6:.2f} M parameters"),
        *(("input", _tensor(spec)) for spec in metadata.inputs),
        *(("output", _tensor(spec)) for spec in metadata.outputs),
        (
            "batch sizes",
            ", ".join(map(str, metadata.batch_sizes))
            + (f" alone: {metadata.mixed_by}" if metadata.mixed_by else " (others are served by these)"),
        ),
        ("weights", metadata.weights_origin),
        ("classes", f"{len(metadata.classes)} named" if metadata.classes else "not named"),
        ("target", json.dumps(metadata.target)),
        ("runs on", f"{metadata.device_type}, {metadata.triple}, {metadata.cpu}"),
        ("CPU needs", " ".join(metadata.cpu_features) or "-"),
        ("code", kernels_text(metadata.kernels)),
        (
            "made",
            f"{metadata.created}, TVM {metadata.tvm_version}, tvm-involution {metadata.package_version}",
        ),
        ("size", f"{library.stat().st_size / 2**20:.1f} MiB"),
    ]
    for name, value in rows:
        click.echo(f"{name:<12} {value}")


def _tensor(spec: TensorSpec) -> str:
    layout = f" {spec.layout}" if spec.layout else ""
    return f"{spec.name}: {spec.dtype} ({', '.join(str(d) for d in spec.shape)}){layout}"
