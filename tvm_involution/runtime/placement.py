# SPDX-License-Identifier: Apache-2.0
"""Where a whole photograph lies in a network's input, and the way back from there.

As in the test pipelines of mmdet and mmseg, a photograph keeps its proportions and is resized as large as fits; the
input is filled up with zeros at the right and the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .metadata import Preprocessing
from .preprocessing import picture_to_array


@dataclass(frozen=True)
class Placement:
    """Sizes are (height, width) in pixels."""

    photograph: tuple[int, int]
    resized: tuple[int, int]
    """the part of the input, from its top left corner, that shows the photograph"""

    @classmethod
    def fit(cls, photograph: tuple[int, int], image_size: tuple[int, int]) -> Placement:
        """Return the largest placement of the whole photograph in an input of `image_size`."""
        scale = min(image_size[0] / photograph[0], image_size[1] / photograph[1])
        height, width = (
            max(1, min(limit, round(side * scale))) for side, limit in zip(photograph, image_size, strict=True)
        )
        return cls(photograph, (height, width))

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes (..., 4), (x1, y1, x2, y2), from the input to the photograph and clip them to it."""
        limits = np.array([self.photograph[1], self.photograph[0]] * 2, np.float32)
        factors = limits / np.array([self.resized[1], self.resized[0]] * 2, np.float32)
        return np.clip(np.asarray(boxes, np.float32) * factors, 0, limits)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Return the pixels of the photograph (H, W) bool that a mask (H, W) of the input covers, at least by half."""
        height, width = self.resized
        shown = Image.fromarray(np.uint8(255) * np.asarray(mask[:height, :width], np.uint8))
        size = (self.photograph[1], self.photograph[0])
        return np.asarray(shown.resize(size, Image.Resampling.BILINEAR)) >= 128

    def labels(self, logits: np.ndarray) -> np.ndarray:
        """Return the best class of each pixel of the photograph (H, W) from logits (C, H, W) of the input."""
        height, width = self.resized
        size = (self.photograph[1], self.photograph[0])
        best = np.full((size[1], size[0]), -np.inf, np.float32)
        labels = np.zeros(best.shape, np.intp)
        # one class after the other: of all of them a photograph's size would not fit into memory
        for label, plane in enumerate(np.ascontiguousarray(logits[:, :height, :width], np.float32)):
            shown = np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
            better = (shown > best) | (np.isnan(shown) & ~np.isnan(best))
            best[better], labels[better] = shown[better], label
        return labels


def best_size(photograph: tuple[int, int], image_sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the image size that shows the whole photograph largest, of several the one with the fewest pixels."""

    def shown(size: tuple[int, int]) -> tuple[int, int]:
        height, width = Placement.fit(photograph, size).resized
        return height * width, -size[0] * size[1]

    return max(image_sizes, key=shown)


def place_picture(
    picture: Image.Image, preprocessing: Preprocessing, image_size: tuple[int, int]
) -> tuple[np.ndarray, Placement]:
    """Return the input (1, 3, H, W) float32 of `image_size` with the whole picture in it, and where that lies."""
    placement = Placement.fit((picture.height, picture.width), image_size)
    height, width = placement.resized
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    array = np.zeros((1, 3, *image_size), np.float32)
    array[:, :, :height, :width] = picture_to_array(resized, preprocessing)
    return array, placement
