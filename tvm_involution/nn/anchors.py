# SPDX-License-Identifier: Apache-2.0
"""Anchor boxes of a feature map, as mmdet's AnchorGenerator (2.x) places and orders them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def base_anchors(base_size: float, scales: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Return the anchors of the pixel at the origin.

    Args:
        base_size: side in pixels of the image of an anchor of scale 1 and ratio 1; the level's stride.
        scales: of the sides.
        ratios: height to width; areas stay the same.

    Returns:
        (len(ratios) * len(scales), 4), boxes (x1, y1, x2, y2) around the origin, ratios outermost.
    """
    ratio = torch.tensor(ratios)[:, None].sqrt()
    side = base_size * torch.tensor(scales)[None]
    width, height = (side / ratio).flatten(), (side * ratio).flatten()
    return torch.stack([-width, -height, width, height], 1) / 2


def grid_anchors(base: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """Return the anchors of every pixel of a feature map.

    Args:
        base: (A, 4) from `base_anchors`.
        size: rows and columns of the feature map.
        stride: pixels of the image to one of the feature map.

    Returns:
        (rows * columns * A, 4), row by row, the anchors of a pixel side by side.
    """
    y = torch.arange(size[0], device=base.device, dtype=base.dtype)[:, None].expand(*size) * stride
    x = torch.arange(size[1], device=base.device, dtype=base.dtype)[None].expand(*size) * stride
    shifts = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4)
