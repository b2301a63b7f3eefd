# SPDX-License-Identifier: Apache-2.0
"""What a detector found, on the photograph: boxes, and masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .placement import Placement


@dataclass(frozen=True)
class Instance:
    """One object."""

    label: int
    score: float
    box: tuple[float, float, float, float]
    """(x1, y1, x2, y2) in pixels of the photograph"""
    mask: np.ndarray | None = None
    """(H, W) bool, of the photograph"""

    def to_coco(self, category: int, name: str) -> dict[str, Any]:
        """Return an entry of COCO's results format; a mask becomes an uncompressed run-length encoding."""
        x1, y1, x2, y2 = self.box
        entry: dict[str, Any] = {
            "category_id": category,
            "category_name": name,
            "bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(self.score, 5),
        }
        if self.mask is not None:
            entry["segmentation"] = {"size": list(self.mask.shape), "counts": run_lengths(self.mask)}
        return entry


def instances(outputs: Mapping[str, np.ndarray], placement: Placement, score_threshold: float) -> list[Instance]:
    """Return what one picture's outputs `boxes`, `scores`, `labels` and, where there are, `masks` show.

    Args:
        outputs: batch 1; boxes (1, M, 4), scores and labels (1, M), masks (1, M, H, W).
        score_threshold: objects with a lower score, and missing ones, are left out.
    """
    boxes = placement.boxes(outputs["boxes"][0])
    found = []
    for i, score in enumerate(outputs["scores"][0]):
        if score > 0 and score >= score_threshold:
            box = boxes[i]
            mask = placement.mask(outputs["masks"][0, i]) if "masks" in outputs else None
            x1, y1, x2, y2 = (float(v) for v in box)
            found.append(Instance(int(outputs["labels"][0, i]), float(score), (x1, y1, x2, y2), mask))
    return found


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of 0 and 1, by turns and 0 first, down the columns."""
    values = np.concatenate([[0], np.asarray(mask, np.uint8).flatten(order="F")])
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    return [int(length) for length in np.diff(np.concatenate([[0], ends]))]
