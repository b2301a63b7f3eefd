# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution run`."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..errors import UserError
from ..files import atomic_write, check_apart
from ..runtime import CompiledNetwork, load
from ..runtime.library_file import read_metadata
from ..runtime.results import softmax
from .command import Command
from .inputs import read_inputs
from .many_pictures import means_many, run_many
from .photograph import report_photograph
from .streams import can_show
from .words import Number, print_json, storable, warn_of_random_weights

_BAR = 40


@click.command("run", cls=Command)
@click.argument("library", type=click.Path(path_type=Path))
@click.option(
    *("--input", "inputs"),
    multiple=True,
    required=True,
    type=click.Path(path_type=Path),
    help="A picture, .npy or .npz; or pictures: a folder, a pattern, several of these options.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="An .npz for the outputs, under their names; or .jsonl, .csv, .parquet for the answers, written as they come.",
)
@click.option("--device", help="cpu, cuda or cuda:N. [default: what the library was compiled for]")
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes to show.")
@click.option(
    "--draw",
    type=click.Path(path_type=Path),
    help="A picture of what was found: boxes, masks, colour map; of several a folder.",
)
@click.option(
    "--score-threshold", type=Number(0, 1), default=0.3, show_default=True, help="Objects below are left out."
)
@click.option("--ray", metavar="ADDRESS", help="Spread over this Ray cluster: HOST:PORT, or auto for this machine's.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; of objects, in COCO's results format.")
def run_command(
    library: Path,
    inputs: tuple[Path, ...],
    output: Path | None,
    device: str | None,
    top_k: int,
    draw: Path | None,
    score_threshold: float,
    ray: str | None,
    as_json: bool,
) -> None:
    """Run a compiled LIBRARY on pictures or an array.

    A picture is prepared as the library's metadata says; an array is passed as it is. Boxes, masks and classes of
    pixels are shown on the photograph. Needs neither torch nor the compiler.

    Of several pictures, those of a folder or of a pattern, each is read while the library runs on others. Answers are
    written as they come; where a run was killed, the same command goes on behind what it wrote.

    A library is a program: load what you trust.

    \b
    Examples:
      tvm-involution run rednet50.so --input photo.jpg
      tvm-involution run rednet50.so --input batch.npy --output logits.npz
      tvm-involution run rednet50.so --input photos --input 'more/**/*.png' --output answers.jsonl
      tvm-involution run rednet50.so --input photos --output answers.jsonl --ray 10.0.0.1:6379
      tvm-involution run mask_rcnn.so --input photo.jpg --draw found.png
    """
    for written in (output, draw):
        check_apart(written, library, *inputs)
    if output is not None and draw is not None and output.resolve() == draw.resolve():
        raise UserError(f"--output and --draw are both {output}; name two files")
    if ray is not None and device is not None:
        raise UserError("--device and --ray: a machine of the cluster has the device that Ray gives it; leave out one")
    # the machines of a cluster run what this one may lack the processor for
    network = load(library, device) if ray is None else None
    metadata = read_metadata(library) if network is None else network.metadata
    warn_of_random_weights(metadata)
    if network is None or means_many(inputs, output):
        run_many(
            network,
            metadata,
            library,
            inputs,
            output=output,
            top_k=top_k,
            draw=draw,
            score_threshold=score_threshold,
            as_json=as_json,
            ray=ray,
        )
        return
    arrays, photograph = read_inputs(network.metadata, inputs[0])
    if draw is not None and photograph is None:
        raise UserError(f"--draw needs a picture and a network that finds things in it, not {network.metadata.task}")
    outputs = network.run(*arrays)
    if output is not None:
        with atomic_write(output) as temporary, open(temporary, "wb") as file:
            np.savez(file, **{name: storable(value) for name, value in outputs.items()})  # type: ignore[arg-type]
    if photograph is not None:
        report_photograph(network.metadata, photograph, outputs, draw, score_threshold, as_json)
    elif network.metadata.task == "classification":
        _print_classes(network, outputs[network.metadata.outputs[0].name], top_k, as_json)
    elif as_json:
        print_json({name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in outputs.items()})
    else:
        for name, value in outputs.items():
            click.echo(f"{name}: {value.dtype} {list(value.shape)}")


def _print_classes(network: CompiledNetwork, logits: np.ndarray, top_k: int, as_json: bool) -> None:
    probabilities = softmax(logits)
    names = network.metadata.classes
    answers: list[list[dict[str, Any]]] = []
    for row in probabilities:
        best = np.argsort(-row, kind="stable")[:top_k]
        answers.append(
            [{"class": int(i), "name": names[i] if names else f"class {i}", "probability": float(row[i])} for i in best]
        )
    if as_json:
        for entry in itertools.chain.from_iterable(answers):
            # JSON has no NaN
            entry["probability"] = entry["probability"] if np.isfinite(entry["probability"]) else None
        print_json(answers)
        return
    block = "█" if can_show("█") else "#"
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            click.echo(f"picture {number}")
        width = max(len(str(entry["name"])) for entry in answer)
        for entry in answer:
            share = entry["probability"] if np.isfinite(entry["probability"]) else 0.0
            bar = block * round(share * _BAR)
            click.echo(f"  {entry['name']:<{width}}  {entry['probability']:7.2%}  {bar}")
