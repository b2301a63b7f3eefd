# SPDX-License-Identifier: Apache-2.0
"""From the file of `--input` to the arrays that a network takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..runtime import LibraryMetadata, TensorSpec
from ..runtime.array_file import read_array, read_arrays
from ..runtime.arrays import numpy_dtype
from ..runtime.placement import Placement
from ..runtime.prepare import prepare_picture
from ..runtime.preprocessing import read_picture


@dataclass(frozen=True)
class Photograph:
    """A picture, and where it lies in the input of a network that takes whole pictures."""

    picture: Image.Image
    placement: Placement


def read_inputs(metadata: LibraryMetadata, path: Path) -> tuple[list[np.ndarray], Photograph | None]:
    """Return an array for each input of the network, and the photograph where the network takes whole ones.

    Args:
        path: a picture, prepared as the metadata says, for the first image size or, where it is placed whole, for that
            which shows it largest; a .npy of the first input, or a .npz with all inputs by name,
            passed as they are.

    Raises:
        UserError: no such file, damaged, an input that is missing, or a picture for a network that takes none.
    """
    if path.suffix.lower() not in (".npy", ".npz"):
        array, photograph = _read_picture(metadata, path)
        return [array], photograph
    specs = metadata.inputs
    if path.suffix.lower() == ".npy":
        return [_restored(specs[0], read_array(path))], None
    arrays = read_arrays(path, [spec.name for spec in specs])
    return [_restored(spec, array) for spec, array in zip(specs, arrays, strict=True)], None


def _read_picture(metadata: LibraryMetadata, path: Path) -> tuple[np.ndarray, Photograph | None]:
    picture = read_picture(path)  # what is no picture is said first
    array, placement = prepare_picture(metadata, picture)
    return array, None if placement is None else Photograph(picture, placement)


def _restored(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Undo what numpy.save does to a bfloat16 array: it becomes nameless items of two bytes."""
    return array.view(numpy_dtype("bfloat16")) if spec.dtype == "bfloat16" and array.dtype.str == "|V2" else array
