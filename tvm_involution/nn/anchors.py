# SPDX-License-Identifier: Apache-2.0
"""Anchor boxes of a feature map, as mmdet's AnchorGenerator (2.x) places and orders them.

They depend on sizes alone. NumPy makes them, so that an exported program holds them as constants and not as operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def base_anchors(base_size: float, scales: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors of the pixel at the origin.

    Args:
        base_size: side in pixels of the image of an anchor of scale 1 and ratio 1; the level's stride.
        scales: of the sides.
        ratios: height to width; areas stay the same.

    Returns:
        (len(ratios) * len(scales), 4), boxes (x1, y1, x2, y2) around the origin, ratios outermost.
    """
    ratio = np.sqrt(np.array(ratios))[:, None]
    side = base_size * np.array(scales)[None]
    width, height = (side / ratio).ravel(), (side * ratio).ravel()
    return np.stack([-width, -height, width, height], 1) / 2


def grid_anchors(base: np.ndarray, size: Sequence[int], stride: int) -> Tensor:
    """Return the anchors of every pixel of a feature map.

    Args:
        base: (A, 4) from `base_anchors`.
        size: rows and columns of the feature map.
        stride: pixels of the image to one of the feature map.

    Returns:
        (rows * columns * A, 4) float32, row by row, the anchors of a pixel side by side.
    """
    y, x = (grid * float(stride) for grid in np.mgrid[: size[0], : size[1]])
    shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4)
    return torch.as_tensor((shifts + base).reshape(-1, 4).astype(np.float32))
