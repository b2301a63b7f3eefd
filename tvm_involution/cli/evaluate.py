# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution evaluate`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click
from rich.console import Console

from ..errors import UserError
from ..files import check_apart, check_writable, write_json
from ..runtime import load
from ..runtime.library_file import read_metadata
from .command import Command
from .interrupt import check_interrupt
from .words import remark, warn_of_random_weights

_WORDS = {
    **{"top1": "top-1 accuracy", "top5": "top-5 accuracy", "box_ap": "AP of boxes", "mask_ap": "AP of masks"},
    "miou": "mean intersection over union",
}
_REPORT_SECONDS = 10.0


@click.command("evaluate", cls=Command)
@click.argument("library", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="imagenet:DIR, coco:DIR or cityscapes:DIR.")
@click.option("--device", help="cpu, cuda or cuda:N. [default: what the library was compiled for]")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N pictures.")
@click.option("--against", type=click.Choice(["torch"]), help="Count where the module in torch answers otherwise.")
@click.option("--ray", metavar="ADDRESS", help="Spread over this Ray cluster: HOST:PORT, or auto for this machine's.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="A file for the figures.")
def evaluate_command(
    library: Path,
    data: str,
    device: str | None,
    limit: int | None,
    against: str | None,
    ray: str | None,
    json_file: Path | None,
) -> None:
    """Run a compiled LIBRARY on a data set, and count how much is right, the published figure beside it.

    \b
    Examples:
      tvm-involution evaluate rednet50.so --data imagenet:/data/imagenet
      tvm-involution evaluate rednet50.so --data imagenet:/data/imagenet --limit 1000 --against torch
      tvm-involution evaluate rednet50.so --data imagenet:/data/imagenet --ray 10.0.0.1:6379
      tvm-involution evaluate mask_rcnn.so --data coco:/data/coco --json figures.json
    """
    from ..evaluation import evaluate

    check_apart(json_file, library)
    if json_file is not None:
        check_writable(json_file)
    if ray is not None and device is not None:
        raise UserError("--device and --ray: a machine of the cluster has the device that Ray gives it; leave out one")
    network = load(library, device) if ray is None else None
    warn_of_random_weights(read_metadata(library) if network is None else network.metadata)
    console = Console(stderr=True)
    start = said = time.monotonic()
    with console.status("reading pictures") if console.is_terminal else contextlib.nullcontext() as status:

        def progress(done: int, of: int) -> None:
            nonlocal said
            check_interrupt()
            now = time.monotonic()
            text = f"{done} of {of} pictures, {done / max(now - start, 1e-9):.1f} pictures/s"
            if status is not None:
                status.update(text)
            elif now - said > _REPORT_SECONDS:
                said = now
                click.echo(text, err=True)

        given = library if network is None else network
        found = evaluate(given, data, limit=limit, against=against, ray=ray, progress=progress, remark=remark)
    if json_file is not None:
        write_json(json_file, found.to_json())
    click.echo(f"{found.library} on {found.pictures} pictures of {found.data}, {found.seconds:.1f} s")
    for name, value in found.figures.items():
        beside = f"   published {found.published[name]:.2f}" if name in found.published else ""
        click.echo(f"  {_WORDS[name]:<29} {value:6.2f} %{beside}")
    if found.compared is not None and found.disagreements is not None:
        what = "pixels" if "miou" in found.figures else "pictures"
        click.echo(f"  differs from torch            {found.disagreements} of {found.compared} {what}")
