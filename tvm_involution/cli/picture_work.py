# SPDX-License-Identifier: Apache-2.0
"""What `run` makes of an answer where the library runs, in this process or on a machine of a cluster."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..runtime.predictor import Failure
from ..runtime.results import PictureClasses, Result
from .answer_files import said_of
from .photograph import lines_of


@dataclass(frozen=True)
class Piece:
    """What is left of an answer: what is written and shown. Outputs and masks would be a hundred times as large."""

    error: str = ""
    """why the picture cannot be read"""
    rendered: bytes = b""
    """for the file of answers"""
    text: str = ""
    """for the screen"""
    drawn: bytes = b""
    """a PNG"""
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PictureWork:
    """Makes an answer what is wanted of it; can be pickled."""

    render: Callable[[Result | Failure, str], bytes] | None
    draws: bool
    shows: bool
    as_json: bool
    keeps_outputs: bool
    score_threshold: float

    def __call__(self, number: int, answer: Result | Failure) -> Piece:
        """Return what is wanted of the answer about the picture `number`."""
        name = str(answer.source)
        return Piece(
            error=str(answer.error) if isinstance(answer, Failure) else "",
            rendered=self.render(answer, name) if self.render is not None else b"",
            text=self._text(answer, name) if self.shows else "",
            drawn=_png(answer) if self.draws and isinstance(answer, Result) else b"",
            outputs=answer.outputs if self.keeps_outputs and isinstance(answer, Result) else {},
        )

    def _text(self, answer: Result | Failure, name: str) -> str:
        if self.as_json:
            return json.dumps(said_of(answer, name))
        if isinstance(answer, Failure):
            lines = ["  cannot be read"]
        elif isinstance(answer, PictureClasses):
            width = max(len(entry.name) for entry in answer.classes)
            lines = [f"  {entry.name:<{width}}  {entry.probability:7.2%}" for entry in answer.classes]
        elif answer.metadata.task == "unknown":
            lines = [f"  {key}: {value.dtype} {list(value.shape)}" for key, value in answer.outputs.items()]
        else:
            lines = lines_of(answer, self.score_threshold)
        return "\n".join([name, *lines])


def _png(answer: Result) -> bytes:
    file = io.BytesIO()
    answer.draw().save(file, format="PNG")
    return file.getvalue()
