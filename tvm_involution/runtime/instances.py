# SPDX-License-Identifier: Apache-2.0
"""What a detector found, on the photograph: boxes, and masks pasted into it as mmdet pastes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .placement import Placement

_MASK_THRESHOLD = 0.5


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
        outputs: batch 1; boxes (1, M, 4), scores and labels (1, M), masks (1, M, S, S).
        score_threshold: objects with a lower score, and missing ones, are left out.
    """
    boxes = placement.boxes(outputs["boxes"][0])
    found = []
    for i, score in enumerate(outputs["scores"][0]):
        if score > 0 and score >= score_threshold:
            box = boxes[i]
            mask = paste_mask(outputs["masks"][0, i], box, placement.photograph) if "masks" in outputs else None
            x1, y1, x2, y2 = (float(v) for v in box)
            found.append(Instance(int(outputs["labels"][0, i]), float(score), (x1, y1, x2, y2), mask))
    return found


def paste_mask(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels (H, W) bool of an image of `size` where `mask` (S, S), laid over `box`, is at least 0.5.

    Pixels' centres are interpolated between the centres of the mask's cells, beyond which it falls to 0.
    """
    rows = _interpolation(box[1], box[3], size[0], mask.shape[0])
    columns = _interpolation(box[0], box[2], size[1], mask.shape[1])
    return rows @ np.asarray(mask, np.float32) @ columns.T >= _MASK_THRESHOLD


def _interpolation(start: float, stop: float, pixels: int, cells: int) -> np.ndarray:
    """Return (pixels, cells): the weights of the cells for each pixel's centre along one axis."""
    extent = max(float(stop) - float(start), 1e-6)
    position = (np.arange(pixels) + 0.5 - float(start)) / extent * cells - 0.5
    distance = np.abs(position[:, None] - np.arange(cells))
    return np.maximum(0, 1 - distance).astype(np.float32)


def run_lengths(mask: np.ndarray) -> list[int]:
    """Return the lengths of the runs of 0 and 1, by turns and 0 first, down the columns."""
    values = np.concatenate([[0], np.asarray(mask, np.uint8).flatten(order="F")])
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    return [int(length) for length in np.diff(np.concatenate([[0], ends]))]
