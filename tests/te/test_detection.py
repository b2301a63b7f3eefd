# SPDX-License-Identifier: Apache-2.0
"""The tensor programs of suppression and RoIAlign against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import tvm
from detections import random_boxes, random_masks
from tvm import te

from tvm_involution.nn import paste_masks as torch_paste_masks
from tvm_involution.te import nms, paste_masks, roi_align

SIZES, SCALES = ((16, 20), (8, 10), (4, 5)), (1 / 4, 1 / 8, 1 / 16)


def run(expression, arrays, shape, dtype) -> np.ndarray:
    """Compile `expression` of placeholders like `arrays` and call it."""
    inputs = [te.placeholder(a.shape, str(a.dtype), name=f"input_{i}") for i, a in enumerate(arrays)]
    library = tvm.compile(te.create_prim_func([*inputs, expression(*inputs)]), target="llvm")
    out = tvm.runtime.tensor(np.zeros(shape, dtype))
    library(*(tvm.runtime.tensor(a) for a in arrays), out)
    return out.numpy()


@pytest.mark.parametrize(("iou_threshold", "max_output"), [(0.0, 7), (0.5, 1), (0.5, 100), (1.0, 100)])
def test_nms(rng, iou_threshold, max_output):
    boxes, groups = random_boxes(rng, 3, 70), rng.integers(0, 3, (3, 70))
    scores = np.sort(rng.integers(0, 10, (3, 70)).astype(np.float32) / 10)[:, ::-1].copy()
    arguments = (0.25, iou_threshold, max_output)
    actual = run(lambda *x: nms(*x, *arguments), (boxes, scores, groups), (3, max_output), "int64")
    images = zip(boxes, scores, groups, strict=True)
    assert actual.tolist() == [reference.nms(*image, *arguments) for image in images]


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align(rng, channels, sampling_ratio):
    features = [rng.standard_normal((2, *size, channels)).astype(np.float32) for size in SIZES]
    corner = rng.uniform(-10, 60, (2, 6, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 50, (2, 6, 2))], -1).astype(np.float32)
    rois[0, 0] = 0
    levels = rng.integers(0, 3, (2, 6))
    actual = run(
        lambda *x: roi_align(x[:3], x[3], x[4], 5, SCALES, sampling_ratio),
        (*features, rois, levels),
        (12, 5, 5, channels),
        "float32",
    )
    expected = [
        reference.roi_align(
            features[level][n].transpose(2, 0, 1), rois[n, r], 5, SCALES[level], sampling_ratio
        ).transpose(1, 2, 0)
        for n in range(2)
        for r, level in enumerate(levels[n])
    ]
    assert reference.relative_norm(actual, np.stack(expected)) < 1e-5


@pytest.mark.parametrize("threshold", [0.5, 0.0, -0.25])
def test_paste_masks(rng, threshold):
    """What lies outside a mask is 0, which a threshold of 0 or below takes in."""
    masks, boxes = random_masks(rng, 5)
    masks = masks if threshold > 0 else masks - 0.5
    arrays = (masks.numpy(), boxes.numpy())
    actual = run(lambda *x: paste_masks(*x, 30, 40, threshold), arrays, (2, 5, 30, 40), "bool")
    expected = torch_paste_masks(masks.double(), boxes.double(), 30, 40, threshold)
    assert expected.any() and not expected.all() and (actual[:, -1] == (threshold <= 0)).all()
    # a pixel right at the threshold may fall on either side
    assert (actual != expected.numpy()).sum() <= 2
