# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution inspect`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from ..runtime.library_file import read_metadata
from ..runtime.metadata import QuantizedLayer, TensorSpec
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
        *(("input", _tensor(forms)) for forms in zip(*(one.inputs for one in metadata.signatures), strict=True)),
        *(("output", _tensor(forms)) for forms in zip(*(one.outputs for one in metadata.signatures), strict=True)),
        *(
            [
                (
                    "image sizes",
                    f"{', '.join('{}x{}'.format(*form.image_size) for form in metadata.forms)} (the input chooses)",
                )
            ]
            if metadata.forms
            else []
        ),
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
        *([("int8", _quantized(metadata.quantized))] if metadata.quantized else []),
        (
            "made",
            f"{metadata.created}, TVM {metadata.tvm_version}, tvm-involution {metadata.package_version}",
        ),
        ("size", f"{library.stat().st_size / 2**20:.1f} MiB"),
    ]
    for name, value in rows:
        click.echo(f"{name:<12} {value}")


def _quantized(layers: Sequence[QuantizedLayer]) -> str:
    """Return how many layers are quantized, and what the noisiest of them loses."""
    inside = [layer for layer in layers if not layer.kept_because]
    worst = min(inside, key=lambda layer: layer.decibels, default=None)
    text = f"{len(inside)} of {len(layers)} layers"
    return text if worst is None else f"{text}, the noisiest {worst.layer}: {worst.decibels:.1f} dB (--json has all)"


def _tensor(forms: Sequence[TensorSpec]) -> str:
    """Return one tensor of a network, with the shapes that it has for the image sizes."""
    spec = forms[0]
    shapes = dict.fromkeys(f"({', '.join(map(str, form.shape))})" for form in forms)
    return f"{spec.name}: {spec.dtype} {' or '.join(shapes)}" + (f" {spec.layout}" if spec.layout else "")
