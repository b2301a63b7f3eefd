# SPDX-License-Identifier: Apache-2.0
"""What `run` says and draws about a photograph: objects, or a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from ..files import atomic_write
from ..runtime import LibraryMetadata
from ..runtime.results import ClassMap, FoundObjects, Result, make_result
from .inputs import Photograph
from .words import print_json


def report_photograph(
    metadata: LibraryMetadata,
    photograph: Photograph,
    outputs: Mapping[str, np.ndarray],
    draw: Path | None,
    score_threshold: float,
    as_json: bool,
) -> None:
    """Print the result, and write it as a PNG to `draw`."""
    result = make_result(metadata, outputs, photograph.picture, photograph.placement, score_threshold=score_threshold)
    if as_json:
        (entries,) = result.to_json().values()
        print_json(entries)
    else:
        for line in lines_of(result, score_threshold):
            click.echo(line)
    if draw is not None:
        with atomic_write(draw) as temporary:
            result.draw().save(temporary, format="PNG")


def lines_of(result: Result, score_threshold: float) -> list[str]:
    """Return what is said about the objects, or the classes of pixels, of a picture."""
    rows = result.rows()
    width = max((len(row["name"]) for row in rows), default=0)
    if isinstance(result, ClassMap):
        return [f"  {row['name']:<{width}}  {row['share']:7.2%} of the picture" for row in rows]
    assert isinstance(result, FoundObjects)
    if not rows:
        return [f"nothing with a score of {score_threshold:.0%} or more"]
    return [
        f"  {row['name']:<{width}}  {row['score']:7.2%}  "
        f"{row['x1']:.0f},{row['y1']:.0f} - {row['x2']:.0f},{row['y2']:.0f}"
        for row in rows
    ]
