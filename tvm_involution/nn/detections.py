# SPDX-License-Identifier: Apache-2.0
"""From boxes with a score for every class to a fixed number of detections (mmdet's `multiclass_nms`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .nms import nms


@dataclass(frozen=True)
class DetectionLimits:
    """mmdet's `test_cfg`."""

    score_threshold: float = 0.05
    iou_threshold: float = 0.5
    max_per_image: int = 100


class Detections(NamedTuple):
    """`max_per_image` detections an image, by falling score; missing ones have score, label and box 0."""

    boxes: Tensor
    """(N, M, 4), (x1, y1, x2, y2) in pixels of the input"""
    scores: Tensor
    """(N, M)"""
    labels: Tensor
    """(N, M) int64"""


def select_detections(boxes: Tensor, scores: Tensor, limits: DetectionLimits) -> Detections:
    """Keep the best boxes of each class that do not overlap.

    Args:
        boxes: (N, K, C, 4), a box for each class, or (N, K, 1, 4), one for all.
        scores: (N, K, C).
    """
    num_classes = scores.shape[2]
    candidates = boxes.expand(-1, -1, num_classes, -1).flatten(1, 2)
    ordered, order = sort_descending(scores.flatten(1))
    labels = order % num_classes
    candidates = gather_boxes(candidates, order)
    kept = nms(candidates, ordered, labels, limits.score_threshold, limits.iou_threshold, limits.max_per_image)
    found = kept >= 0
    position = torch.where(found, kept, 0)
    return Detections(
        torch.where(found[..., None], gather_boxes(candidates, position), 0.0),
        torch.where(found, ordered.gather(1, position), 0.0),
        torch.where(found, labels.gather(1, position), 0),
    )


def sort_descending(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N, K) by falling value, and where each came from; equal ones keep their order."""
    values, order = torch.sort(scores, dim=1, descending=True, stable=True)
    return values, order


def gather_boxes(boxes: Tensor, index: Tensor) -> Tensor:
    """Return the boxes (N, M, 4) of (N, K, 4) at `index` (N, M)."""
    return boxes.gather(1, index[..., None].expand(-1, -1, 4))
