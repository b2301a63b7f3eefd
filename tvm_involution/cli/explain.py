# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from .command import Command
from .words import ImageSize, print_json, print_table


@click.command("explain", cls=Command)
@click.argument("model")
@click.option("--image-size", type=ImageSize(), help="Height and width of the input. [default: the network's own]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def explain_command(model: str, image_size: tuple[int, int] | None, as_json: bool) -> None:
    """Show what would be compiled of MODEL: each involution, how it was found, what cannot be imported and why.

    MODEL is what `compile` takes. Nothing is compiled, and no weights are needed.

    \b
    Examples:
      tvm-involution explain rednet50
      tvm-involution explain mynet:build --json
    """
    from ..frontend.explain import explain
    from ..frontend.network import resolve_network

    network = resolve_network(model, image_size=image_size)
    found = explain(network.export(network.batch_sizes(None)[0]))
    if as_json:
        print_json({"name": network.name, **asdict(found)})
        return
    recognised = sum(involution.recognised for involution in found.involutions)
    how = f", {recognised} of them by what they compute" if recognised else ""
    click.echo(f"{network.name}: {len(found.involutions)} involutions{how}")
    if found.involutions:
        columns = [
            "window",
            "stride",
            "padding",
            "dilation",
            "channels",
            "groups",
            "pixels",
            "found",
            "module",
            "source",
        ]
        rows = [
            [
                *(_by(sizes) for sizes in (one.kernel_size, one.stride, one.padding, one.dilation)),
                str(one.channels),
                str(one.groups),
                f"{_by(one.input_size)} to {_by(one.output_size)}",
                "by meaning" if one.recognised else "as operator",
                one.module or "-",
                _short(one.source),
            ]
            for one in found.involutions
        ]
        print_table("involutions", columns, rows)
    for note in found.notes:
        click.echo(f"note: {note}")
    for refusal in found.refusals:
        click.echo(f"cannot be imported: {refusal.reason}" + (f" ({refusal.source})" if refusal.source else ""))
    click.echo("other operators: " + ", ".join(f"{name} {count}" for name, count in found.operators.items()))


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _short(source: str) -> str:
    """Return `file:line` with the file's name alone."""
    path, _, rest = source.partition(":")
    return f"{Path(path).name}:{rest.partition(':')[0]}" if rest else "-"
