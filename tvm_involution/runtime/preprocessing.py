# SPDX-License-Identifier: Apache-2.0
"""From a picture file to a network's input."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from .metadata import Preprocessing


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture in RGB, turned as its EXIF orientation says.

    Raises:
        UserError: missing, or no picture that Pillow reads.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist; name a picture, or an array in .npy or .npz")
    try:
        with Image.open(file) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise UserError(f"{file} is no picture that can be read ({error}); expected JPEG, PNG or the like") from error


def crop_picture(picture: Image.Image, preprocessing: Preprocessing, image_size: tuple[int, int]) -> Image.Image:
    """Resize the short side and cut the centre, as the metadata says, scaled to `image_size` (height, width)."""
    assert preprocessing.resize is not None and preprocessing.crop is not None
    height, width = image_size
    # a library compiled for another size keeps the proportion of resized side to crop
    side = round(preprocessing.resize * max(height, width) / preprocessing.crop)
    scale = side / min(picture.size)
    resized = picture.resize(
        (max(width, round(picture.width * scale)), max(height, round(picture.height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))


def picture_to_array(picture: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Return the picture as (1, 3, H, W) float32, normalized by the metadata's mean and deviation."""
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    normalized = (np.asarray(picture, dtype=np.float32) - mean) / std
    return np.ascontiguousarray(normalized.transpose(2, 0, 1)[None])
