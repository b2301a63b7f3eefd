# SPDX-License-Identifier: Apache-2.0
"""Random boxes and masks."""

from __future__ import annotations

import numpy as np
import torch


def random_boxes(rng, *shape: int) -> np.ndarray:
    """Boxes on an integer grid, so that many overlap, many are equal, and some have no area."""
    corner = rng.integers(0, 20, (*shape, 2))
    return np.concatenate([corner, corner + rng.integers(0, 12, (*shape, 2))], -1).astype(np.float32)


def random_masks(rng, regions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (2, regions, 7, 7) and boxes, some of them partly outside a picture of 30x40; the last ones are missing."""
    masks = torch.from_numpy(rng.random((2, regions, 7, 7)).astype(np.float32))
    corners = rng.uniform(-5, 25, (2, regions, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.5, 30, (2, regions, 2))], -1).astype(np.float32)
    boxes[:, -1] = 0
    return masks, torch.from_numpy(boxes)
