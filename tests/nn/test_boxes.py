# SPDX-License-Identifier: Apache-2.0
"""Anchors and box decoding against plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tvm_involution.nn.anchors import base_anchors, grid_anchors
from tvm_involution.nn.box_coder import decode_boxes


@pytest.mark.parametrize(("stride", "scales"), [(4, [8.0]), (16, [4.0, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)])])
def test_anchors_are_centred_on_the_grid_row_by_row(stride, scales):
    ratios = [0.5, 1.0, 2.0]
    expected = []
    for row in range(3):
        for column in range(5):
            for ratio in ratios:
                for scale in scales:
                    height, width = stride * scale * math.sqrt(ratio), stride * scale / math.sqrt(ratio)
                    x, y = column * stride, row * stride
                    expected.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    actual = grid_anchors(base_anchors(stride, scales, ratios), (3, 5), stride)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-5)


def decode(box, delta, image_size, stds):
    """One box, in float64, by the formulas of R-CNN."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (d * s for d, s in zip(delta, stds, strict=True))
    x, y = box[0] + width / 2 + width * dx, box[1] + height / 2 + height * dy
    limit = 1000 / 16
    width *= min(max(math.exp(dw), 1 / limit), limit)
    height *= min(max(math.exp(dh), 1 / limit), limit)
    edges = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return [min(max(e, 0), limit) for e, limit in zip(edges, (image_size[1], image_size[0]) * 2, strict=True)]


@pytest.mark.parametrize("stds", [(1.0, 1.0, 1.0, 1.0), (0.1, 0.1, 0.2, 0.2)])
def test_decoding(rng, stds):
    corner = rng.uniform(-50, 200, (2, 40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 100, (2, 40, 2))], -1)
    deltas = rng.standard_normal((2, 40, 4)) * 4
    actual = decode_boxes(torch.from_numpy(boxes), torch.from_numpy(deltas), (120, 200), stds)
    expected = [
        [decode(b, d, (120, 200), stds) for b, d in zip(*image, strict=True)]
        for image in zip(boxes, deltas, strict=True)
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-10)


def test_no_delta_is_the_box_itself():
    boxes = torch.tensor([[3.0, 4, 10, 20]])
    assert torch.equal(decode_boxes(boxes, torch.zeros(1, 4), (100, 100)), boxes)
