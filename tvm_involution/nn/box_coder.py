# SPDX-License-Identifier: Apache-2.0
"""Boxes from predicted deltas, as mmdet's DeltaXYWHBBoxCoder decodes them (R-CNN, arXiv 1311.2524, appendix C)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# exp of a larger delta would make a box more than 1000 / 16 times as large as its anchor
_MAX_LOG_SCALE = math.log(1000 / 16)


def decode_boxes(
    boxes: Tensor, deltas: Tensor, image_size: Sequence[int], stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Move and scale `boxes` by `deltas` and clip them to the image.

    Args:
        boxes: (..., 4), (x1, y1, x2, y2) in pixels.
        deltas: (..., 4), shifts of the centre in widths and heights, and logarithms of scales, each over its `stds`.
        image_size: height and width in pixels.

    Returns:
        (..., 4), (x1, y1, x2, y2) in pixels.
    """
    dx, dy, dw, dh = (delta * std for delta, std in zip(deltas.split(1, -1), stds, strict=True))
    x1, y1, x2, y2 = boxes.split(1, -1)
    width, height = x2 - x1, y2 - y1
    center_x, center_y = (x1 + x2) / 2 + width * dx, (y1 + y2) / 2 + height * dy
    half_w = width * dw.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp() / 2
    half_h = height * dh.clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp() / 2
    rows, columns = image_size
    return torch.cat(
        [
            (center_x - half_w).clamp(0, columns),
            (center_y - half_h).clamp(0, rows),
            (center_x + half_w).clamp(0, columns),
            (center_y + half_h).clamp(0, rows),
        ],
        -1,
    )
