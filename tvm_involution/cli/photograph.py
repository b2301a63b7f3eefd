# SPDX-License-Identifier: Apache-2.0
"""What `run` says and draws about a photograph: objects, or a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..errors import UserError
from ..files import atomic_write
from ..runtime import LibraryMetadata
from ..runtime.drawing import class_colour, draw_instances, draw_labels
from ..runtime.instances import instances
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
    outputs = {name: np.asarray(value) for name, value in outputs.items()}
    report = _report_labels if metadata.task == "semantic_segmentation" else _report_instances
    drawn = report(metadata, photograph, outputs, score_threshold, as_json)
    if draw is not None:
        with atomic_write(draw) as temporary:
            drawn.save(temporary, format="PNG")


def _report_instances(
    metadata: LibraryMetadata,
    photograph: Photograph,
    outputs: dict[str, np.ndarray],
    score_threshold: float,
    as_json: bool,
) -> Any:
    found = instances(outputs, photograph.placement, score_threshold)
    names = metadata.classes or tuple(f"class {i}" for i in range(1 + max((i.label for i in found), default=0)))
    if strange := {i.label for i in found} - set(range(len(names))):
        raise UserError(
            f"{metadata.name} found objects of class {', '.join(map(str, sorted(strange)))}, and its metadata name "
            f"{len(names)} classes, counted from 0; compile it with the classes that it was trained on"
        )
    ids = metadata.class_ids or range(len(names))
    if as_json:
        print_json([instance.to_coco(ids[instance.label], names[instance.label]) for instance in found])
    elif not found:
        click.echo(f"nothing with a score of {score_threshold:.0%} or more")
    else:
        width = max(len(names[instance.label]) for instance in found)
        for instance in found:
            x1, y1, x2, y2 = instance.box
            click.echo(
                f"  {names[instance.label]:<{width}}  {instance.score:7.2%}  {x1:.0f},{y1:.0f} - {x2:.0f},{y2:.0f}"
            )
    return draw_instances(photograph.picture, found, names)


def _report_labels(
    metadata: LibraryMetadata, photograph: Photograph, outputs: dict[str, np.ndarray], _: float, as_json: bool
) -> Any:
    labels = photograph.placement.labels(outputs["logits"][0])
    num_classes = outputs["logits"].shape[1]
    names = metadata.classes or tuple(f"class {i}" for i in range(num_classes))
    shares = np.bincount(labels.ravel(), minlength=num_classes) / labels.size
    ranked = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
    if as_json:
        print_json([{"class": i, "name": names[i], "share": float(shares[i])} for i in ranked])
    else:
        width = max(len(names[i]) for i in ranked)
        for i in ranked:
            click.echo(f"  {names[i]:<{width}}  {shares[i]:7.2%} of the picture")
    colours = metadata.colours or tuple(class_colour(i) for i in range(num_classes))
    return draw_labels(photograph.picture, labels, colours)
