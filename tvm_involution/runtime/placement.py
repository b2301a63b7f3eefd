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
from .preprocessing import picture_to_array, resize_picture


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
            max(1, min(limit, int(side * scale + 0.5))) for side, limit in zip(photograph, image_size, strict=True)
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
        best = np.full(self.photograph, -np.inf, np.float32)
        labels = np.zeros(best.shape, np.intp)
        # one class after the other: of all of them a photograph's size would not fit into memory
        for label, plane in enumerate(np.ascontiguousarray(logits[:, :height, :width], np.float32)):
            shown = _resized(plane, self.photograph)
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
    resized = resize_picture(picture, preprocessing, (height, width))
    array = np.zeros((1, 3, *image_size), np.float32)
    array[:, :, :height, :width] = picture_to_array(resized, preprocessing)
    return array, placement


def _resized(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a plane (H, W) float32 in another size as torch interpolates it, bilinearly with `align_corners=False`."""
    if plane.shape == size:
        return plane
    if plane.shape[0] <= size[0] and plane.shape[1] <= size[1]:  # where Pillow shrinks, it averages
        return np.asarray(Image.fromarray(plane).resize(size[::-1], Image.Resampling.BILINEAR))
    for axis in (0, 1):
        places = (np.arange(size[axis]) + 0.5) * (plane.shape[axis] / size[axis]) - 0.5
        places = np.clip(places, 0, plane.shape[axis] - 1)
        first = places.astype(np.intp)
        share = (places - first).astype(np.float32)
        share = share[:, None] if axis == 0 else share
        second = np.minimum(first + 1, plane.shape[axis] - 1)
        plane = plane.take(first, axis) * (1 - share) + plane.take(second, axis) * share
    return plane
