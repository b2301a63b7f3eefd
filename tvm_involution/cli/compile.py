# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution compile`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import click
from rich.console import Console

import tvm_involution

from ..files import check_apart, check_writable
from .command import Command
from .interrupt import check_interrupt
from .words import BatchSizes, ImageSizes, kernels_text, warn_of_random_weights


@click.command("compile", cls=Command)
@click.argument("model")
@click.option(
    "--target", default="llvm", show_default=True, help="llvm (this CPU), cuda (this GPU), a TVM tag or JSON."
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The shared library to write.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Weights: .pth or .pt of any trainer, safetensors.")
@click.option("--checkpoint-key", help="Which of several state dicts in the checkpoint to take: ema_state_dict ...")
@click.option("--batch", type=BatchSizes(), help="Batch sizes to build for. [default: 1]")
@click.option("--dtype", help="float32, float16, bfloat16, or on CPUs int8. [default: float32]")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="For int8: a folder of pictures, or prepared inputs in .npy or .npz.",
)
@click.option(
    "--image-size",
    type=ImageSizes(),
    help="Heights and widths, of which the input chooses. [default: the network's own]",
)
@click.option("--num-classes", type=click.IntRange(1), help="[default: as the checkpoint's head has, else the zoo's]")
@click.option("--classes", type=click.Path(path_type=Path), help="Names of the classes: a text file, a line each.")
@click.option(
    "--preprocessing", type=click.Path(path_type=Path), help="How a picture is prepared: a .toml, as in models/."
)
@click.option(
    "--tuning-logs",
    type=click.Path(path_type=Path),
    help="Folder of tuning logs. [default: $XDG_DATA_HOME/tvm-involution/tuning_logs, the shipped]",
)
@click.option(
    "--cuda-graph/--no-cuda-graph", default=True, help="On GPUs: one launch for all kernels. [default: --cuda-graph]"
)
@click.option("--debug-dump", type=click.Path(path_type=Path), help="Folder for the module after each phase.")
def compile_command(
    model: str,
    target: str,
    output: Path,
    checkpoint: Path | None,
    checkpoint_key: str | None,
    batch: tuple[int, ...] | None,
    dtype: str | None,
    calibration: Path | None,
    image_size: tuple[tuple[int, int], ...] | None,
    num_classes: int | None,
    classes: Path | None,
    preprocessing: Path | None,
    tuning_logs: Path | None,
    cuda_graph: bool,
    debug_dump: Path | None,
) -> None:
    """Compile MODEL to one shared library with code, weights and metadata.

    MODEL is a zoo name (`tvm-involution models`), a .toml file like those in models/, a .pt2 file of
    torch.export.save, or package.module:function that returns an nn.Module or (module, example inputs): a tensor, a
    tuple of arguments or a dictionary of them by name.

    \b
    Examples:
      tvm-involution compile rednet50 -o rednet50.so --checkpoint rednet50.pth
      tvm-involution compile rednet26 --batch 1,8 --image-size 288x288 -o rednet26.so
      tvm-involution compile rednet50 --target nvidia/nvidia-h100 --dtype float16 -o rednet50-h100.so
      tvm-involution compile rednet50 --checkpoint rednet50.pth --dtype int8 --calibration photos -o rednet50.so
      tvm-involution compile exported.pt2 --image-size 224x224,320x320 -o exported.so
      tvm-involution compile rednet26 --checkpoint finetuned.pth --classes names.txt -o mine.so
      tvm-involution compile exported.pt2 --classes names.txt --preprocessing pixels.toml -o exported.so
    """
    from ..frontend.user_function import source_file

    check_apart(output, model, checkpoint, source_file(model), classes, preprocessing, calibration)
    check_writable(output)
    console = Console(stderr=True)
    start = time.monotonic()
    with console.status("compiling") if console.is_terminal else contextlib.nullcontext() as status:

        def progress(phase: str) -> None:
            check_interrupt()
            if status is not None:
                status.update(f"{phase} …")
            else:
                click.echo(f"[{time.monotonic() - start:5.1f} s] {phase}")

        library = tvm_involution.compile(
            model,
            target,
            checkpoint=checkpoint,
            checkpoint_key=checkpoint_key,
            batch=batch,
            dtype=dtype,
            calibration=calibration,
            image_size=image_size,
            num_classes=num_classes,
            classes=classes,
            preprocessing=preprocessing,
            tuning_logs=tuning_logs,
            cuda_graph=cuda_graph,
            debug_dump=debug_dump,
            progress=progress,
        )
        progress("link")
        library.save(output)
    metadata = library.metadata
    size = output.stat().st_size / 2**20
    click.echo(f"{output}: {metadata.name}, {size:.1f} MiB, {time.monotonic() - start:.1f} s")
    click.echo(f"  weights  {metadata.weights_origin}")
    click.echo(f"  code     {kernels_text(metadata.kernels)}")
    warn_of_random_weights(metadata)
    for note in library.notes:
        click.echo(f"  note     {note}")
    if output.suffix == ".so" and (source := output.with_suffix(".py")).is_file():
        click.echo(f"  note     `import {output.stem}` finds this library before {source}; another name avoids that")
