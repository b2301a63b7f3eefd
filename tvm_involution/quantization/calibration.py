# SPDX-License-Identifier: Apache-2.0
"""The pictures, or arrays, that show which values a network's tensors take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..runtime.array_file import read_array, read_arrays
from ..runtime.find_pictures import find_pictures
from ..runtime.metadata import BATCH, Preprocessing, TensorSpec
from ..runtime.prepare import picture_input
from ..runtime.preprocessing import read_picture

Calibration = str | Path | np.ndarray | Sequence[np.ndarray]
PICTURES = 128
"""of a calibration set that are used, spread over the whole"""


def read_calibration(
    data: Calibration,
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing | None,
) -> list[np.ndarray]:
    """Return an array (pictures, ...) in float32 for each input, of at most `PICTURES`.

    Args:
        data: a folder of pictures, which `preprocessing` makes inputs of; a .npy file of the one input, or a .npz file
            of all by name, prepared already and with the batch first; or such arrays.

    Raises:
        UserError: nothing there, arrays of other shapes or dtypes, pictures for a network that takes none.
    """
    odd = next((spec for spec in inputs if not spec.shape or spec.shape[0] != BATCH or spec.dtype != "float32"), None)
    if odd is not None or not inputs:
        what = "no inputs" if odd is None else f"input {odd.name} {odd.dtype} {_shape_text(odd.shape)}"
        raise UserError(f"int8 is for inputs in float32 with the batch first, and the network has {what}")
    if isinstance(data, np.ndarray):
        arrays, where = [data], "calibration"
    elif isinstance(data, (str, Path)):
        arrays, where = _read(Path(data), inputs, preprocessing), str(data)
    else:
        arrays, where = list(data), "calibration"
    if len(arrays) != len(inputs):
        raise UserError(f"{where} has {len(arrays)} arrays, expected {len(inputs)}, one for each input")
    for spec, array in zip(inputs, arrays, strict=True):
        _check(where, spec, array)
    counts = {len(array) for array in arrays}
    if len(counts) > 1:
        raise UserError(f"{where} has {' and '.join(map(str, sorted(counts)))} entries for different inputs")
    (count,) = counts
    chosen = np.linspace(0, count - 1, min(count, PICTURES)).round().astype(int)
    return [np.ascontiguousarray(array[chosen], np.float32) for array in arrays]


def _read(path: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing | None) -> list[np.ndarray]:
    if path.suffix.lower() == ".npz":
        return read_arrays(path, [spec.name for spec in inputs])
    if path.suffix.lower() == ".npy":
        return [read_array(path)]
    if not path.is_dir():
        missing = "does not exist" if not path.exists() else "is no folder"
        raise UserError(f"{path} {missing}; name a folder of pictures, or arrays in .npy or .npz")
    if preprocessing is None or len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise UserError(
            f"how pictures of {path} become inputs is not known; give arrays in .npy or .npz, or --preprocessing"
        )
    pictures = find_pictures([path])
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), PICTURES)).round().astype(int)
    height, width = (int(d) for d in inputs[0].shape[2:])
    prepared = (picture_input(read_picture(pictures[place]), preprocessing, [(height, width)]) for place in chosen)
    return [np.concatenate([array for array, _ in prepared])]


def _check(where: str, spec: TensorSpec, array: np.ndarray) -> None:
    wanted = ["N", *map(str, spec.shape[1:])]
    expected = f"expected float32 ({', '.join(wanted)}) for {spec.name}, one picture or more"
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise UserError(f"{where} is {getattr(array, 'dtype', type(array).__name__)}; {expected}")
    if array.ndim != len(wanted) or array.shape[1:] != tuple(spec.shape[1:]) or not len(array):
        raise UserError(f"{where} has shape {_shape_text(array.shape)}; {expected}")
    if not np.isfinite(array).all():
        raise UserError(f"{where} holds NaN or infinity for {spec.name}, which have no range; leave those pictures out")


def _shape_text(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"
