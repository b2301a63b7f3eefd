# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression and the choice of detections against a plain loop, ties and empty results included."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from detections import random_boxes

from tvm_involution import UserError
from tvm_involution.nn.detections import DetectionLimits, select_detections
from tvm_involution.nn.nms import nms


@pytest.mark.parametrize("max_output", [1, 7, 200])
@pytest.mark.parametrize("iou_threshold", [0.0, 0.5, 1.0])
def test_matches_a_plain_loop(rng, iou_threshold, max_output):
    boxes, groups = random_boxes(rng, 3, 90), rng.integers(0, 3, (3, 90))
    scores = np.sort(rng.integers(0, 10, (3, 90)).astype(np.float32) / 10)[:, ::-1].copy()
    actual = nms(*(torch.from_numpy(a) for a in (boxes, scores, groups)), 0.2, iou_threshold, max_output)
    expected = [
        reference.nms(*image, 0.2, iou_threshold, max_output) for image in zip(boxes, scores, groups, strict=True)
    ]
    assert actual.dtype == torch.int64 and actual.tolist() == expected


def test_of_equal_boxes_the_first_stays_and_one_at_the_threshold_too():
    boxes = torch.tensor([[[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4.0]]])
    scores, groups = torch.tensor([[0.9, 0.9, 0.9, 0.9]]), torch.tensor([[0, 0, 0, 1]])
    assert nms(boxes, scores, groups, 0.0, 0.5, 4).tolist() == [[0, 2, 3, -1]]


def test_nothing_above_the_threshold():
    boxes, groups = torch.rand(2, 5, 4), torch.zeros(2, 5, dtype=torch.int64)
    assert nms(boxes, torch.full((2, 5), 0.5), groups, 0.5, 0.5, 3).tolist() == [[-1, -1, -1]] * 2
    assert nms(boxes[:, :0], boxes[:, :0, 0], groups[:, :0], 0.5, 0.5, 3).tolist() == [[-1, -1, -1]] * 2


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_do_not_fit(device):
    boxes = torch.zeros(1, 5, 4, device=device)
    with pytest.raises(UserError, match=r"boxes \(N, K, 4\).*\[1, 5, 4\], \[1, 4\]"):
        nms(boxes, boxes[:, :4, 0], boxes[:, :4, 0], 0.0, 0.5, 3)
    with pytest.raises(UserError, match="max_output must be a whole number of at least 1"):
        nms(boxes, boxes[..., 0], boxes[..., 0], 0.0, 0.5, 0)


def test_operator_is_registered_soundly(rng):
    boxes, groups = torch.from_numpy(random_boxes(rng, 2, 9)), torch.from_numpy(rng.integers(0, 2, (2, 9)))
    arguments = (boxes, torch.rand(2, 9), groups, 0.1, 0.5, 4)
    torch.library.opcheck(torch.ops.tvm_involution.nms.default, arguments)


def expected_detections(boxes, scores, limits):
    """Every pair of box and class by falling score, equal ones in order, through the plain loop."""
    pairs = sorted(
        ((-scores[k, c], k, c) for k in range(scores.shape[0]) for c in range(scores.shape[1])), key=lambda p: p[0]
    )
    chosen = [boxes[k, min(c, boxes.shape[1] - 1)] for _, k, c in pairs]
    kept = reference.nms(
        chosen,
        [-p[0] for p in pairs],
        [p[2] for p in pairs],
        limits.score_threshold,
        limits.iou_threshold,
        limits.max_per_image,
    )
    empty = ([0.0] * 4, 0.0, 0)
    return [(chosen[i].tolist(), -pairs[i][0], pairs[i][2]) if i >= 0 else empty for i in kept]


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("score_threshold", [0.15, 0.55, 0.95])
def test_detections(rng, score_threshold, per_class):
    limits = DetectionLimits(score_threshold, 0.4, 12)
    boxes = random_boxes(rng, 2, 15, 4 if per_class else 1)
    scores = rng.integers(0, 10, (2, 15, 4)).astype(np.float32) / 10
    found = select_detections(torch.from_numpy(boxes), torch.from_numpy(scores), limits)
    for image in range(2):
        expected = expected_detections(boxes[image], scores[image], limits)
        actual = zip(*(part[image].tolist() for part in found), strict=True)
        assert [tuple(detection) for detection in actual] == [(b, pytest.approx(s), c) for b, s, c in expected]
    assert found.boxes.shape == (2, 12, 4) and found.labels.dtype == torch.int64
