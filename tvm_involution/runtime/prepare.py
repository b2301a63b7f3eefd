# SPDX-License-Identifier: Apache-2.0
"""From one picture to a network's input, as the library's metadata say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ..errors import UserError
from .arrays import numpy_dtype
from .metadata import LibraryMetadata, Preprocessing
from .placement import Placement, best_size, place_picture
from .preprocessing import crop_picture, picture_to_array


def prepare_picture(metadata: LibraryMetadata, picture: Image.Image) -> tuple[np.ndarray, Placement | None]:
    """Return the input (1, 3, H, W), and where the picture lies in it, for networks that take whole ones.

    Args:
        picture: in RGB.

    Raises:
        UserError: the library does not say how.
    """
    preprocessing, spec = metadata.preprocessing, metadata.inputs[0]
    if preprocessing is None:
        raise UserError(
            f"{metadata.name} does not say how to prepare a picture; give an array in .npy or .npz, or compile it with "
            "--preprocessing"
        )
    sizes = [(int(height), int(width)) for *_, height, width in (one.inputs[0].shape for one in metadata.signatures)]
    array, placement = picture_input(picture, preprocessing, sizes)
    return array.astype(numpy_dtype(spec.dtype), copy=False), placement


def picture_input(
    picture: Image.Image, preprocessing: Preprocessing, sizes: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, Placement | None]:
    """Return what `prepare_picture` does, in float32, for a network that takes pictures of `sizes` (height, width)."""
    if preprocessing.crop is None:
        return place_picture(picture, preprocessing, best_size((picture.height, picture.width), sizes))
    return picture_to_array(crop_picture(picture, preprocessing, sizes[0]), preprocessing), None
