# SPDX-License-Identifier: Apache-2.0
"""Two small data sets that PyPI packages carry: handwritten digits, and crops of real photographs.

Nothing is downloaded. `photos` asks which of ten photographs a crop is from: the left 70 % of each photograph is for
training, the right 30 % is held out and never seen, so the network must know the subject's colours and textures, not
the pixels. It is a small task, and a real one; it says nothing about ImageNet.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image

_SKIMAGE = Path(skimage.__file__).parent / "data"
_SKLEARN = Path(sklearn.datasets.__file__).parent / "images"

PHOTOGRAPHS = {
    "astronaut": _SKIMAGE / "astronaut.png",
    "cat": _SKIMAGE / "chelsea.png",
    "coffee": _SKIMAGE / "coffee.png",
    "flower": _SKLEARN / "flower.jpg",
    "galaxies": _SKIMAGE / "hubble_deep_field.jpg",
    "motorcycle": _SKIMAGE / "motorcycle_left.png",
    "retina": _SKIMAGE / "retina.jpg",
    "rocket": _SKIMAGE / "rocket.jpg",
    "temple": _SKLEARN / "china.jpg",
    "tissue": _SKIMAGE / "ihc.png",
}
TRAINED_SHARE = 0.7

MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)


@dataclass(frozen=True)
class Split:
    """Pictures (N, 3, H, W) float32, normalized, and their classes (N,) int64."""

    images: np.ndarray
    labels: np.ndarray


def normalize(pixels: np.ndarray) -> np.ndarray:
    """(..., H, W, 3) in 0..255 -> (..., 3, H, W) float32, by ImageNet's mean and deviation."""
    return np.ascontiguousarray(np.moveaxis((pixels.astype(np.float32) - MEAN) / STD, -1, -3))


def load_photograph(name: str) -> Image.Image:
    """Return one of `PHOTOGRAPHS` in RGB."""
    with Image.open(PHOTOGRAPHS[name]) as picture:
        return picture.convert("RGB")


def random_crop(picture: Image.Image, size: int, rng: np.random.Generator, smallest: float = 0.4) -> np.ndarray:
    """Cut a square of `smallest` to 1 of the short side anywhere, resize it to `size`; (size, size, 3) uint8."""
    side = int(min(picture.size) * rng.uniform(smallest, 1.0))
    left = int(rng.integers(0, picture.width - side + 1))
    top = int(rng.integers(0, picture.height - side + 1))
    crop = picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    return np.asarray(crop)


def training_parts() -> list[Image.Image]:
    """Return the trained part of each photograph, in the order of the classes."""
    return [_part(name, 0.0, TRAINED_SHARE) for name in PHOTOGRAPHS]


def held_out_photos(size: int = 96, crops: int = 40) -> Split:
    """Return `crops` crops of the held-out part of each photograph; always the same ones."""
    rng = np.random.default_rng(2103)
    images, labels = [], []
    for label, name in enumerate(PHOTOGRAPHS):
        part = _part(name, TRAINED_SHARE, 1.0)
        images += [random_crop(part, size, rng) for _ in range(crops)]
        labels += [label] * crops
    return Split(normalize(np.stack(images)), np.array(labels))


def digits(size: int = 32) -> tuple[Split, Split]:
    """Return scikit-learn's 1797 handwritten digits as pictures of `size`: training, and every fifth held out."""
    data = sklearn.datasets.load_digits()
    pixels = [
        np.asarray(Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR))
        for image in data.images
    ]
    images = normalize(np.repeat(np.stack(pixels)[..., None], 3, axis=-1))
    labels = data.target.astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 4
    return Split(images[~held_out], labels[~held_out]), Split(images[held_out], labels[held_out])


def _part(name: str, start: float, stop: float) -> Image.Image:
    picture = load_photograph(name)
    return picture.crop((round(picture.width * start), 0, round(picture.width * stop), picture.height))
