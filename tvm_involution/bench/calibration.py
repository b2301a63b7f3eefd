# SPDX-License-Identifier: Apache-2.0
"""What contenders that quantize a network are shown: the same for all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from .subject import Subject

_PICTURES, _SEED = 4, 0


def random_pictures(shapes: Iterable[Sequence[int]]) -> list[np.ndarray]:
    """Return some pictures (4, ...) of standard normal numbers for inputs of such shapes (N, ...), always the same."""
    rng = np.random.default_rng(_SEED)
    return [rng.standard_normal((_PICTURES, *shape[1:]), np.float32) for shape in shapes]


def calibration_pictures(subject: Subject) -> list[np.ndarray]:
    """Return an array (pictures, ...) for each input, once our library is there: `subject.calibration`, else random.

    Raises:
        UserError: the pictures do not fit the network's inputs.
    """
    from ..runtime.library_file import read_metadata

    metadata = read_metadata(subject.library)
    if subject.calibration is None:
        return random_pictures(spec.shape_for(1) for spec in metadata.inputs)
    from ..quantization import read_calibration

    return read_calibration(subject.calibration, metadata.inputs, metadata.preprocessing)


def batches(pictures: Sequence[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    """Return the inputs of some calls, the last one filled up with the first pictures again."""
    count = len(pictures[0])
    places = [np.arange(start, start + batch) % count for start in range(0, count, batch)]
    return [[np.ascontiguousarray(array[place]) for array in pictures] for place in places]
