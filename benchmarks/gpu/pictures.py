# SPDX-License-Identifier: Apache-2.0
"""Inputs for networks: crops of photographs that come with other packages, else smooth random pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

_MEAN, _STD = (np.array(values, np.float32) for values in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
# package -> its folder of pictures and the photographs in it
_PHOTOGRAPHS = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}


def make_inputs(batch: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Return (N, 3, size, size) float32, normalized as ImageNet's pictures are, and what they are of."""
    photographs = [Image.open(path).convert("RGB") for path in _photographs()]
    if photographs:
        pixels = [_crop(photographs[i % len(photographs)], size, rng) for i in range(batch)]
    else:
        pixels = [_smooth(size, rng) for _ in range(batch)]
    normalized = (np.stack(pixels).astype(np.float32) - _MEAN) / _STD
    kind = "crops of photographs" if photographs else "smooth random pictures"
    return np.ascontiguousarray(normalized.transpose(0, 3, 1, 2)), kind


def _photographs() -> list[Path]:
    found = []
    for package, (folder, names) in _PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)  # without importing it
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            found += [path for path in (Path(place, folder, name) for name in names) if path.is_file()]
    return found


def _crop(picture: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    side = int(min(picture.size) * rng.uniform(0.5, 1.0))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in picture.size)
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box))


def _smooth(size: int, rng: np.random.Generator) -> np.ndarray:
    coarse = rng.integers(0, 256, (max(2, size // 16),) * 2 + (3,), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
