# SPDX-License-Identifier: Apache-2.0
"""Detections are compared by object, everything else by value."""

from __future__ import annotations

import numpy as np
import pytest

from tvm_involution.bench.agreement import disagreement

TASK = "instance_segmentation"


def detections(rng: np.random.Generator) -> list[np.ndarray]:
    """Two pictures with 5 and 0 objects, and room for 8."""
    boxes = np.sort(rng.uniform(0, 100, (2, 8, 4)).astype(np.float32))
    scores = -np.sort(-rng.uniform(0.1, 1, (2, 8)).astype(np.float32))
    scores[0, 5:] = scores[1] = 0
    return [boxes, scores, rng.integers(0, 9, (2, 8)), rng.random((2, 8, 20, 30)) < 0.5]


def test_order_and_missing_objects_do_not_matter(rng):
    expected = detections(rng)
    order = np.array([3, 0, 1, 4, 2, 7, 6, 5])
    actual = [part[:, order] for part in expected]
    actual[0][1] = 7  # boxes that are not there
    assert disagreement(actual, expected, TASK) == 0
    assert disagreement([part[:, :0] for part in expected], [part[:, :0] for part in expected], TASK) == 0


@pytest.mark.parametrize(("part", "change"), [(0, 3.0), (1, 0.05), (2, 1)])
def test_an_object_that_differs_is_counted_on_both_sides(rng, part, change):
    expected = detections(rng)
    actual = [p.copy() for p in expected]
    actual[part][0, 2] += change
    assert disagreement(actual, expected, TASK) == pytest.approx(0.2)


def test_masks_and_surplus_objects(rng):
    expected = detections(rng)
    actual = [p.copy() for p in expected]
    actual[3][0, 1, 0, 0] ^= True
    actual[1][1, 0] = 0.5
    assert disagreement(actual, expected, TASK) == pytest.approx(1 - 2 * 4 / 11)


def test_values(rng):
    expected = [rng.standard_normal((2, 3)), rng.standard_normal(4)]
    assert disagreement([2 * x for x in expected], expected, "classification") == pytest.approx(1)
    assert disagreement([x * 0 for x in expected], [x * 0 for x in expected], "classification") == 0
