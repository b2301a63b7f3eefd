# SPDX-License-Identifier: Apache-2.0
"""`run` on several pictures, folders and patterns: batches, progress, and answers as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from ..errors import UserError
from ..files import atomic_write
from ..runtime import CompiledNetwork
from ..runtime.find_pictures import find_pictures
from ..runtime.predictor import Failure, Predictor
from ..runtime.results import PictureClasses, Result
from .answer_files import SUFFIXES, AnswerFile, Gathered, open_answers
from .interrupt import check_interrupt
from .photograph import lines_of
from .words import print_json_line, storable

_REPORT_SECONDS = 10.0


def means_many(inputs: Sequence[Path], output: Path | None) -> bool:
    """Return whether `run` is about several pictures, or writes answers as they come."""
    return len(inputs) > 1 or not inputs[0].is_file() or (output is not None and output.suffix.lower() in SUFFIXES)


def run_many(
    network: CompiledNetwork,
    library: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None,
    top_k: int,
    draw: Path | None,
    score_threshold: float,
    as_json: bool,
) -> None:
    """Answer about all pictures.

    Raises:
        UserError: nothing is meant, what is no picture is named, or pictures could not be read: all others are answered
            and written before that is said.
    """
    pictures = find_pictures(inputs)
    if arrays := [name for name in pictures if name.lower().endswith((".npy", ".npz"))]:
        raise UserError(
            f"{arrays[0]} holds arrays, which are run one file at a time; name pictures, or that file alone"
        )
    predictor = Predictor(network, top_k=top_k, score_threshold=score_threshold)
    if output is not None and output.suffix.lower() not in (*SUFFIXES, ".npz"):
        raise UserError(f"{output}: expected .npz, .jsonl, .csv or .parquet for the answers")
    gathered = Gathered()
    with contextlib.ExitStack() as stack:
        answers: AnswerFile | None = None
        if output is not None and output.suffix.lower() in SUFFIXES:
            answers = stack.enter_context(open_answers(output, library, network.metadata, top_k))
        left = [name for name in pictures if answers is None or name not in answers.done]
        folder = _Folder(draw) if draw is not None else None
        failures: list[Failure] = []
        for answer, name in _with_progress(predictor, left, quiet=output is None):
            if isinstance(answer, Failure):
                failures.append(answer)
            elif folder is not None:
                folder.save(answer, name)
            if answers is not None:
                answers.write(answer, name)
            elif output is not None and isinstance(answer, Result):
                gathered.add(answer, name)
            elif output is None:
                _show(answer, name, as_json, score_threshold)
        if answers is not None:
            answers.finish()
        elif output is not None and len(failures) < len(left):
            arrays_of_all = {key: storable(value) for key, value in gathered.arrays().items()}
            with atomic_write(output) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays_of_all)  # type: ignore[arg-type]
    if failures:
        others = f"; the other {len(left) - len(failures)} are answered" if len(left) > len(failures) else ""
        raise UserError(f"{len(failures)} of {len(left)} pictures could not be read: {failures[0].error}{others}")


def _with_progress(predictor: Predictor, names: Sequence[str], quiet: bool) -> Iterator[tuple[Result | Failure, str]]:
    console = Console(stderr=True)
    start = said = time.monotonic()
    number = 0

    def rate() -> str:
        seconds = time.monotonic() - start
        return f"{number} of {len(names)} pictures in {seconds:.1f} s, {number / max(seconds, 1e-9):.1f} pictures/s"

    with console.status("reading pictures") if console.is_terminal else contextlib.nullcontext() as status:
        for answer, name in zip(predictor.stream(names), names, strict=True):
            check_interrupt()
            yield answer, name
            number += 1
            now = time.monotonic()
            if status is not None:
                status.update(rate())
            elif now - said > _REPORT_SECONDS:
                said = now
                click.echo(rate(), err=True)
    if not quiet:
        click.echo(rate() if names else "all pictures are answered already")


def _show(answer: Result | Failure, name: str, as_json: bool, score_threshold: float) -> None:
    if as_json:
        said: dict[str, Any] = {"error": str(answer.error)} if isinstance(answer, Failure) else answer.to_json()
        print_json_line({"input": name, **said})
        return
    click.echo(name)
    if isinstance(answer, Failure):
        click.echo("  cannot be read")
    elif isinstance(answer, PictureClasses):
        width = max(len(entry.name) for entry in answer.classes)
        for entry in answer.classes:
            click.echo(f"  {entry.name:<{width}}  {entry.probability:7.2%}")
    elif answer.metadata.task == "unknown":
        for key, value in answer.outputs.items():
            click.echo(f"  {key}: {value.dtype} {list(value.shape)}")
    else:
        for line in lines_of(answer, score_threshold):
            click.echo(line)


class _Folder:
    """Where drawn pictures go, each under its own name."""

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise UserError(f"--draw {path} is a file; of several pictures it names a folder")
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
        self._path = path
        self._taken: set[str] = set()

    def save(self, answer: Result, name: str) -> None:
        stem, number = Path(name).stem, 1
        free = stem
        while free in self._taken:
            number += 1
            free = f"{stem}-{number}"
        self._taken.add(free)
        with atomic_write(self._path / f"{free}.png") as temporary:
            answer.draw().save(temporary, format="PNG")
