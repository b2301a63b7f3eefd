# SPDX-License-Identifier: Apache-2.0
"""Greedy non-maximum suppression as a PyTorch operator, `torch.ops.tvm_involution.nms`, that `torch.export` keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Size, checked
from ..errors import UserError
from .ops import LIBRARY
from .plain_tensors import check_floating, check_integers, check_plain, wide

LIBRARY.define(
    "nms(Tensor boxes, Tensor scores, Tensor groups, float score_threshold, float iou_threshold, SymInt max_output) "
    "-> Tensor"
)


@checked
def nms(
    boxes: Tensor, scores: Tensor, groups: Tensor, score_threshold: float, iou_threshold: float, max_output: Size
) -> Tensor:
    """Keep each box that overlaps no box kept before it, in the order given, until `max_output` are kept.

    Args:
        boxes: (N, K, 4), (x1, y1, x2, y2); floating, by falling score where the best shall win.
        scores: (N, K); a box whose score is not above `score_threshold` is passed over.
        groups: (N, K), integers; boxes of different groups (classes, levels) leave each other alone.
        iou_threshold: a box goes where its intersection over union with a kept one is above this. Two boxes without
            area overlap by 0.

    Returns:
        (N, max_output) int64: positions of the kept boxes in order, then -1.

    Raises:
        UserError: shapes, dtypes or devices that do not fit.
    """
    check_plain("nms", boxes=boxes, scores=scores, groups=groups)
    return torch.ops.tvm_involution.nms(boxes, scores, groups, score_threshold, iou_threshold, max_output)


def _check(boxes: Tensor, scores: Tensor, groups: Tensor, max_output: int) -> None:
    check_plain("nms", boxes=boxes, scores=scores, groups=groups)
    check_floating("nms", boxes=boxes, scores=scores)
    if boxes.dim() != 3 or boxes.shape[2] != 4 or boxes.shape[:2] != scores.shape or scores.shape != groups.shape:
        raise UserError(
            "nms takes boxes (N, K, 4), scores (N, K) and groups (N, K), got "
            f"{list(boxes.shape)}, {list(scores.shape)} and {list(groups.shape)}"
        )
    check_integers("nms", groups=groups)
    if max_output < 1:
        raise UserError(f"nms: max_output must be at least 1, got {max_output}")


@torch.library.register_fake("tvm_involution::nms", lib=LIBRARY)
def _fake(boxes, scores, groups, score_threshold, iou_threshold, max_output):
    _check(boxes, scores, groups, max_output)
    return boxes.new_empty((boxes.shape[0], max_output), dtype=torch.int64)


def _nms(boxes, scores, groups, score_threshold, iou_threshold, max_output):
    _check(boxes, scores, groups, max_output)
    boxes, scores = wide(boxes, scores)
    kept = torch.full((boxes.shape[0], max_output), -1, dtype=torch.int64)
    for image in range(boxes.shape[0]):
        positions = _keep(
            boxes[image].cpu(), scores[image].cpu(), groups[image].cpu(), score_threshold, iou_threshold, max_output
        )
        kept[image, : len(positions)] = torch.tensor(positions, dtype=torch.int64)
    return kept.to(boxes.device)


def _keep(boxes, scores, groups, score_threshold, iou_threshold, max_output) -> list[int]:
    """Take the first box left, drop what it suppresses, and so on."""
    left = (scores > score_threshold).nonzero()[:, 0]
    positions: list[int] = []
    while len(left) and len(positions) < max_output:
        best, left = left[0], left[1:]
        positions.append(int(best))
        suppressed = (groups[left] == groups[best]) & (_iou(boxes[best], boxes[left]) > iou_threshold)
        left = left[~suppressed]
    return positions


def _iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Return the intersection over union of (4,) with each of (K, 4); 0 where neither has an area."""
    sides = (torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])).clamp(min=0)
    intersection = sides.prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - intersection
    return torch.where(union > 0, intersection / union, 0)


for _key in ("CPU", "CUDA"):
    torch.library.impl(LIBRARY, "nms", _key)(_nms)
