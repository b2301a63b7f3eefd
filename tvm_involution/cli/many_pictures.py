# SPDX-License-Identifier: Apache-2.0
"""`run` on several pictures, folders and patterns: batches, progress, and answers as they come."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console

from ..errors import UserError
from ..files import atomic_write
from ..runtime import CompiledNetwork, LibraryMetadata
from ..runtime.find_pictures import find_pictures
from ..runtime.predictor import Predictor, batch_of
from .answer_files import SUFFIXES, AnswerFile, Gathered, open_answers
from .interrupt import check_interrupt
from .picture_work import PictureWork, Piece
from .words import remark, storable

_REPORT_SECONDS = 10.0


def means_many(inputs: Sequence[Path], output: Path | None) -> bool:
    """Return whether `run` is about several pictures, or writes answers as they come."""
    return len(inputs) > 1 or not inputs[0].is_file() or (output is not None and output.suffix.lower() in SUFFIXES)


def run_many(
    network: CompiledNetwork | None,
    metadata: LibraryMetadata,
    library: Path,
    inputs: Sequence[Path],
    *,
    output: Path | None,
    top_k: int,
    draw: Path | None,
    score_threshold: float,
    as_json: bool,
    ray: str | None = None,
) -> None:
    """Answer about all pictures.

    Args:
        network: the library, None where the machines of a cluster load it.
        ray: the address of a Ray cluster that answers.

    Raises:
        UserError: nothing is meant, what is no picture is named, or pictures could not be read: all others are answered
            and written before that is said.
    """
    pictures = find_pictures(inputs)
    if arrays := [name for name in pictures if name.lower().endswith((".npy", ".npz"))]:
        raise UserError(
            f"{arrays[0]} holds arrays, which are run one file at a time; name pictures, or that file alone"
        )
    batch_of(metadata)
    if output is not None and output.suffix.lower() not in (*SUFFIXES, ".npz"):
        raise UserError(f"{output}: expected .npz, .jsonl, .csv or .parquet for the answers")
    gathered = Gathered()
    with contextlib.ExitStack() as stack:
        answers: AnswerFile | None = None
        if output is not None and output.suffix.lower() in SUFFIXES:
            answers = stack.enter_context(open_answers(output, library, metadata, top_k))
        left = [name for name in pictures if answers is None or name not in answers.done]
        folder = _Folder(draw) if draw is not None else None
        work = PictureWork(
            render=answers.render if answers is not None else None,
            draws=folder is not None,
            shows=output is None,
            as_json=as_json,
            keeps_outputs=output is not None and answers is None,
            score_threshold=score_threshold,
        )
        settings: dict[str, Any] = {"top_k": top_k, "score_threshold": score_threshold}
        pieces: Iterable[tuple[int, Piece]]
        if ray is not None:
            from ..ray.spread import spread

            pieces = spread(library, left, work, address=ray, remark=remark, **settings)
        else:
            assert network is not None
            stream = Predictor(network, **settings).stream(left)
            pieces = ((number, work(number, answer)) for number, answer in enumerate(stream))
        errors: list[str] = []
        for number, piece in _with_progress(pieces, len(left), quiet=output is None):
            if piece.error:
                errors.append(piece.error)
            if folder is not None and piece.drawn:
                folder.save(piece.drawn, left[number])
            if answers is not None:
                answers.add(piece.rendered)
            elif output is None:
                click.echo(piece.text)
            elif not piece.error:
                gathered.add(number, left[number], piece.outputs)
        if answers is not None:
            answers.finish()
        elif output is not None and len(errors) < len(left):
            arrays_of_all = {key: storable(value) for key, value in gathered.arrays().items()}
            with atomic_write(output) as temporary, open(temporary, "wb") as file:
                np.savez(file, **arrays_of_all)  # type: ignore[arg-type]
    if errors:
        others = f"; the other {len(left) - len(errors)} are answered" if len(left) > len(errors) else ""
        raise UserError(f"{len(errors)} of {len(left)} pictures could not be read: {errors[0]}{others}")


def _with_progress(pieces: Iterable[tuple[int, Piece]], count: int, quiet: bool) -> Iterator[tuple[int, Piece]]:
    console = Console(stderr=True)
    start = said = time.monotonic()
    done = 0

    def rate() -> str:
        seconds = time.monotonic() - start
        return f"{done} of {count} pictures in {seconds:.1f} s, {done / max(seconds, 1e-9):.1f} pictures/s"

    with console.status("reading pictures") if console.is_terminal else contextlib.nullcontext() as status:
        for entry in pieces:
            check_interrupt()
            yield entry
            done += 1
            now = time.monotonic()
            if status is not None:
                status.update(rate())
            elif now - said > _REPORT_SECONDS:
                said = now
                click.echo(rate(), err=True)
    if not quiet:
        click.echo(rate() if count else "all pictures are answered already")


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

    def save(self, drawn: bytes, name: str) -> None:
        stem, number = Path(name).stem, 1
        free = stem
        while free in self._taken:
            number += 1
            free = f"{stem}-{number}"
        self._taken.add(free)
        with atomic_write(self._path / f"{free}.png") as temporary:
            temporary.write_bytes(drawn)
