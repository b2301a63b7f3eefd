# SPDX-License-Identifier: Apache-2.0
"""A network's answer about one picture, with names: classes, objects or a map of classes. Each can be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from .drawing import class_colour, draw_instances, draw_labels
from .instances import Instance, instances
from .metadata import LibraryMetadata
from .placement import Placement


@dataclass(frozen=True)
class Result:
    """What was answered about a picture."""

    source: str | None
    """the picture's file, None of one in memory"""
    picture: Image.Image = field(repr=False)
    outputs: Mapping[str, np.ndarray] = field(repr=False)
    """the network's own, of this picture alone, batch 1"""
    metadata: LibraryMetadata = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain data."""
        return {"outputs": {name: np.asarray(value, np.float64).tolist() for name, value in self.outputs.items()}}

    def rows(self) -> list[dict[str, Any]]:
        """Return the answer as rows of a table.

        Raises:
            UserError: it is no table.
        """
        raise UserError(f"the outputs of {self.metadata.name} are no table; write them to .jsonl or .npz")

    def draw(self) -> Image.Image:
        """Return a copy of the picture with the answer on it.

        Raises:
            UserError: what the outputs mean is not known.
        """
        raise UserError(f"what {self.metadata.name} answers cannot be drawn; compile it with --classes")


@dataclass(frozen=True)
class Scored:
    """A class and its probability."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class PictureClasses(Result):
    """The classes of a picture; `classes` has the best, in falling order."""

    top_k: int = 5

    @cached_property
    def probabilities(self) -> np.ndarray:
        """Of all classes (C,) float64."""
        return softmax(self.outputs[self.metadata.outputs[0].name])[0]

    @cached_property
    def classes(self) -> tuple[Scored, ...]:
        """The best `top_k`."""
        names, values = self.metadata.classes, self.probabilities
        best = np.argsort(-values, kind="stable")[: self.top_k]
        return tuple(Scored(int(i), names[i] if names else f"class {i}", float(values[i])) for i in best)

    def to_json(self) -> dict[str, Any]:
        """Return `{"classes": [{"class": 7, "name": ..., "probability": ...}, ...]}`; JSON has no NaN."""
        return {
            "classes": [
                {"class": c.label, "name": c.name, "probability": c.probability if np.isfinite(c.probability) else None}
                for c in self.classes
            ]
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return one row: `class_1`, `name_1`, `probability_1`, `class_2` ..."""
        row: dict[str, Any] = {}
        for number, entry in enumerate(self.to_json()["classes"], 1):
            row |= {f"{key}_{number}": value for key, value in entry.items()}
        return [row]

    def draw(self) -> Image.Image:
        """Return the picture with the classes' names and probabilities in its corner."""
        drawn = self.picture.convert("RGB")
        canvas, font = ImageDraw.Draw(drawn), ImageFont.load_default(max(10, max(drawn.size) // 40))
        text = "\n".join(f"{c.name} {c.probability:.1%}" for c in self.classes)
        left, top, right, bottom = canvas.multiline_textbbox((6, 6), text, font=font)
        canvas.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(0, 0, 0))
        canvas.multiline_text((6, 6), text, fill=(255, 255, 255), font=font)
        return drawn


@dataclass(frozen=True)
class FoundObjects(Result):
    """The objects in a picture, by falling score."""

    objects: tuple[Instance, ...] = ()

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all classes, by their labels."""
        return self.metadata.classes or tuple(
            f"class {i}" for i in range(1 + max((o.label for o in self.objects), default=0))
        )

    @property
    def boxes(self) -> np.ndarray:
        """Of the objects (M, 4) float32, (x1, y1, x2, y2) in pixels of the picture."""
        return np.array([found.box for found in self.objects], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> np.ndarray:
        """Of the objects (M,) float32."""
        return np.array([found.score for found in self.objects], np.float32)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the objects' classes."""
        return tuple(self.names[found.label] for found in self.objects)

    @property
    def masks(self) -> np.ndarray | None:
        """Of the objects (M, H, W) bool, None of a network that finds boxes alone."""
        if "masks" not in self.outputs:
            return None
        shape = (len(self.objects), self.picture.height, self.picture.width)
        return np.array([found.mask for found in self.objects], bool).reshape(shape)

    def to_json(self) -> dict[str, Any]:
        """Return `{"objects": [...]}`, each in COCO's results format."""
        ids = self.metadata.class_ids or range(len(self.names))
        return {"objects": [found.to_coco(ids[found.label], self.names[found.label]) for found in self.objects]}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each object: `class`, `name`, `score`, `x1`, `y1`, `x2`, `y2`."""
        return [
            {
                **{"class": found.label, "name": self.names[found.label], "score": found.score},
                **dict(zip(("x1", "y1", "x2", "y2"), found.box, strict=True)),
            }
            for found in self.objects
        ]

    def draw(self) -> Image.Image:
        """Return the picture with boxes, names, scores and masks."""
        return draw_instances(self.picture, self.objects, self.names)


@dataclass(frozen=True)
class ClassMap(Result):
    """A class for every pixel."""

    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.intp), repr=False)
    """(H, W) of the picture"""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of all classes, by their labels."""
        return self.metadata.classes or tuple(f"class {i}" for i in range(self._count))

    @property
    def _count(self) -> int:
        return int(self.outputs["logits"].shape[1])

    @cached_property
    def shares(self) -> np.ndarray:
        """The part of the picture that each class has, (C,)."""
        return np.bincount(self.labels.ravel(), minlength=self._count) / self.labels.size

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each class that is there, the largest first: `class`, `name`, `share`."""
        ranked = [int(i) for i in np.argsort(-self.shares, kind="stable") if self.shares[i] > 0]
        return [{"class": i, "name": self.names[i], "share": float(self.shares[i])} for i in ranked]

    def to_json(self) -> dict[str, Any]:
        """Return `{"shares": [{"class": 0, "name": ..., "share": 0.5}, ...]}`."""
        return {"shares": self.rows()}

    def draw(self) -> Image.Image:
        """Return the picture under its map in the classes' colours."""
        colours = self.metadata.colours or tuple(class_colour(i) for i in range(self._count))
        return draw_labels(self.picture, self.labels, colours)


COLUMNS: dict[str, tuple[str, ...]] = {
    "semantic_segmentation": ("class", "name", "share"),
    **dict.fromkeys(("detection", "instance_segmentation"), ("class", "name", "score", "x1", "y1", "x2", "y2")),
}
"""of `Result.rows`, by task; a classifier's are one after another, see `PictureClasses.rows`"""


def make_result(
    metadata: LibraryMetadata,
    outputs: Mapping[str, np.ndarray],
    picture: Image.Image,
    placement: Placement | None,
    *,
    source: str | None = None,
    top_k: int = 5,
    score_threshold: float = 0.3,
) -> Result:
    """Return the answer that one picture's outputs, batch 1, are.

    Raises:
        UserError: objects of classes that the metadata do not name.
    """
    outputs = {name: np.asarray(value) for name, value in outputs.items()}
    given: dict[str, Any] = {"source": source, "picture": picture, "outputs": outputs, "metadata": metadata}
    if metadata.task == "classification":
        return PictureClasses(**given, top_k=top_k)
    if metadata.task == "semantic_segmentation":
        whole = (picture.height, picture.width)
        lies = placement or Placement(whole, tuple(outputs["logits"].shape[2:]))
        return ClassMap(**given, labels=lies.labels(outputs["logits"][0]))
    if metadata.task in COLUMNS and placement is not None:
        found = tuple(instances(outputs, placement, score_threshold))
        count = len(metadata.classes) if metadata.classes else None
        strange = {i.label for i in found if i.label < 0 or (count is not None and i.label >= count)}
        if strange:
            raise UserError(
                f"{metadata.name} found objects of class {', '.join(map(str, sorted(strange)))}, and its metadata name "
                f"{count or 'no'} classes, counted from 0; compile it with the classes that it was trained on"
            )
        return FoundObjects(**given, objects=found)
    return Result(**given)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, C) float64 of logits (N, C)."""
    values = np.asarray(logits, dtype=np.float64)
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
