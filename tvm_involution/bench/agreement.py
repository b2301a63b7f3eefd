# SPDX-License-Identifier: Apache-2.0
"""Whether outputs are the reference's: by value, and for detections by object."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DETECTION_TASKS = ("detection", "instance_segmentation")
# what rounding may do to an object's score, to its box in pixels, and to what share of the input's pixels in its mask
_SCORE, _PIXELS, _MASK = 0.01, 1.0, 1e-3


def disagreement(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], task: str) -> float:
    """Return the relative error of all outputs together; of detections, the share of objects that only one side has.

    Args:
        actual: outputs of the shapes of `expected`.
        task: of the network; `detection` and `instance_segmentation` have the outputs boxes, scores, labels, masks.
    """
    if task in DETECTION_TASKS:
        return _unmatched(actual, expected)
    one, other = (np.concatenate([np.ravel(a).astype(np.float64) for a in x]) for x in (actual, expected))
    return float(np.linalg.norm(one - other) / max(np.linalg.norm(other), np.finfo(np.float64).tiny))


def _unmatched(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Objects need not come in the same order: rounding may swap those of nearly equal scores."""
    objects = twins = 0
    for image in range(len(expected[0])):
        one, other = ([part[image] for part in outputs] for outputs in (actual, expected))
        free = [int(i) for i in np.flatnonzero(one[1] > 0)]
        wanted = np.flatnonzero(other[1] > 0)
        objects += len(free) + len(wanted)
        for i in wanted:
            twin = next((j for j in free if _same([part[j] for part in one], [part[i] for part in other])), None)
            if twin is not None:
                free.remove(twin)
                twins += 1
    return 1 - 2 * twins / objects if objects else 0.0


def _same(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> bool:
    """Return whether two objects (box, score, label and perhaps mask) are one."""
    return bool(
        one[2] == other[2]
        and abs(float(one[1]) - float(other[1])) < _SCORE
        and np.abs(one[0] - other[0]).max() < _PIXELS
        and all((a != b).mean() < _MASK for a, b in zip(one[3:], other[3:], strict=True))
    )
