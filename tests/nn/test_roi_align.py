# SPDX-License-Identifier: Apache-2.0
"""RoIAlign and the choice of levels against plain float64 loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference
import torch

from tvm_involution import UserError
from tvm_involution.nn.roi_align import assign_levels, roi_align

SIZES, SCALES = ((16, 20), (8, 10), (4, 5)), (1 / 4, 1 / 8, 1 / 16)


def make_inputs(rng, n=2, regions=6, dtype=torch.float64):
    features = [torch.from_numpy(rng.standard_normal((n, 3, *size))).to(dtype) for size in SIZES]
    corner = rng.uniform(-10, 60, (n, regions, 2))
    rois = torch.from_numpy(np.concatenate([corner, corner + rng.uniform(0, 50, (n, regions, 2))], -1)).to(dtype)
    return features, rois, torch.from_numpy(rng.integers(0, 3, (n, regions)))


@pytest.mark.parametrize(("output_size", "sampling_ratio"), [(7, 0), (2, 0), (3, 2)])
def test_matches_a_plain_loop(rng, output_size, sampling_ratio):
    features, rois, levels = make_inputs(rng)
    actual = roi_align(features, rois, levels, output_size, SCALES, sampling_ratio)
    expected = [
        reference.roi_align(features[level][n].numpy(), rois[n, r], output_size, SCALES[level], sampling_ratio)
        for n in range(2)
        for r, level in enumerate(levels[n].tolist())
    ]
    assert actual.shape == (12, 3, output_size, output_size)
    assert reference.relative_norm(actual.numpy(), np.stack(expected)) < 1e-13


def test_region_over_whole_cells_is_an_average_of_pixels(rng):
    """With aligned corners, a region of 4x4 pixels in 2x2 cells samples every pixel's centre."""
    feature = torch.from_numpy(rng.standard_normal((1, 1, 6, 6)))
    rois = torch.tensor([[[4.0, 4, 20, 20]]], dtype=torch.float64)
    out = roi_align([feature], rois, torch.zeros(1, 1, dtype=torch.int64), 2, [0.25])
    expected = torch.nn.functional.avg_pool2d(feature[:, :, 1:5, 1:5], 2)
    torch.testing.assert_close(out, expected)


def test_region_without_area_or_outside_is_zero(rng):
    features, _, _ = make_inputs(rng, 1)
    rois = torch.tensor([[[0.0, 0, 0, 0], [500, 500, 600, 600]]], dtype=torch.float64)
    assert not roi_align(features, rois, torch.zeros(1, 2, dtype=torch.int64), 7, SCALES).any()


def test_levels(rng):
    sides = torch.from_numpy(rng.uniform(0, 2000, (3, 50, 2)))
    rois = torch.cat([torch.full_like(sides, 5), sides + 5], -1)
    expected = [[min(max(math.floor(math.log2(math.sqrt(w * h) / 56 + 1e-6)), 0), 3) for w, h in r] for r in sides]
    assert assign_levels(rois, 4).tolist() == expected


@pytest.mark.parametrize(
    ("side", "level"), [(0, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (9e3, 3)]
)
def test_a_doubling_is_the_next_level(side, level):
    assert assign_levels(torch.tensor([0.0, 0.0, side, side]), 4).item() == level


def test_operator_is_registered_soundly(rng):
    features, rois, levels = make_inputs(rng, dtype=torch.float32)
    torch.library.opcheck(torch.ops.tvm_involution.roi_align.default, (features, rois, levels, 7, list(SCALES), 0))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_do_not_fit(device):
    x, rois = torch.zeros(1, 3, 8, 8, device=device), torch.zeros(1, 2, 4, device=device)
    with pytest.raises(UserError, match="one spatial scale each"):
        roi_align([x, x], rois, rois[..., 0], 7, [0.25])
    with pytest.raises(UserError, match=r"rois \(1, R, 4\).*\[2, 2, 4\]"):
        roi_align([x], rois.expand(2, -1, -1), rois[..., 0], 7, [0.25])
