# SPDX-License-Identifier: Apache-2.0
"""Whole photographs in a network's input, and boxes, masks and labels on the way back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from library_fixture import WHOLE
from PIL import Image

from tvm_involution.runtime.instances import instances, run_lengths
from tvm_involution.runtime.placement import Placement, place_picture


@pytest.mark.parametrize(
    ("photograph", "image_size", "resized"),
    [
        ((480, 640), (800, 1280), (800, 1067)),
        ((640, 480), (800, 1280), (800, 600)),
        ((1024, 2048), (512, 1024), (512, 1024)),
        ((10, 2000), (64, 64), (1, 64)),
        ((1, 1), (32, 64), (32, 32)),
    ],
)
def test_the_photograph_is_as_large_as_fits(photograph, image_size, resized):
    assert Placement.fit(photograph, image_size) == Placement(photograph, resized)


def test_input_is_the_normalized_picture_and_zeros(rng):
    pixels = rng.integers(0, 256, (10, 20, 3), dtype=np.uint8)
    array, placement = place_picture(Image.fromarray(pixels), WHOLE, (16, 20))
    assert placement == Placement((10, 20), (10, 20)) and array.dtype == np.float32
    expected = (pixels.astype(np.float64) - WHOLE.mean) / WHOLE.std
    np.testing.assert_allclose(array[0, :, :10], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    assert not array[0, :, 10:].any()


def test_boxes_come_back_to_the_photograph():
    placement = Placement((100, 400), (50, 200))
    boxes = placement.boxes(np.array([[10, 20, 30, 40], [-5, 10, 210, 60]]))
    assert boxes.tolist() == [[20, 40, 60, 80], [0, 20, 400, 100]]


def test_labels_are_those_of_the_resized_logits(rng):
    logits = rng.standard_normal((5, 12, 16)).astype(np.float32)
    labels = Placement((20, 30), (10, 15)).labels(logits)
    region = torch.from_numpy(logits)[None, :, :10, :15]
    expected = torch.nn.functional.interpolate(region, (20, 30), mode="bilinear", align_corners=False)[0].numpy()
    best = np.take_along_axis(expected, labels[None], 0)[0]
    assert labels.shape == (20, 30)
    np.testing.assert_allclose(best, expected.max(0), atol=1e-4)


def test_masks_come_back_to_the_photograph():
    mask = np.zeros((50, 200), bool)
    mask[10:20, 40:150] = True
    mapped = Placement((100, 400), (50, 200)).mask(mask)
    assert mapped.shape == (100, 400) and mapped.dtype == bool
    rows, columns = np.nonzero(mapped)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 80, 299)
    assert mapped.sum() == 20 * 220
    # what lies beside the photograph in the input is cut off
    assert Placement((50, 100), (50, 100)).mask(mask).sum() == 10 * 60


@pytest.mark.parametrize(
    ("mask", "counts"),
    [
        ([[0, 0], [0, 0]], [4]),
        ([[1, 1], [1, 1]], [0, 4]),
        ([[0, 1], [1, 1]], [1, 3]),
        ([[1, 0, 1], [0, 0, 1]], [0, 1, 3, 2]),
        ([[0, 1], [0, 0]], [2, 1, 1]),
    ],
)
def test_run_lengths_go_down_the_columns(mask, counts):
    assert run_lengths(np.array(mask, bool)) == counts


def test_instances():
    outputs = {
        "boxes": np.array([[[0, 0, 4, 4], [2, 2, 8, 8], [0, 0, 0, 0]]], np.float32),
        "scores": np.array([[0.9, 0.2, 0.0]], np.float32),
        "labels": np.array([[2, 1, 0]]),
        "masks": np.arange(8) < np.array([4, 8, 0])[None, :, None, None] * np.ones((8, 1), int),
    }
    placement = Placement((16, 16), (8, 8))
    first, second = instances(outputs, placement, 0.0)
    assert (first.label, round(first.score, 3), first.box, second.box) == (2, 0.9, (0, 0, 8, 8), (4, 4, 16, 16))
    assert first.mask is not None and first.mask[:, :8].all() and first.mask.sum() == 128
    assert len(instances(outputs, placement, 0.3)) == 1
    entry = first.to_coco(44, "bottle")
    assert (entry["category_id"], entry["category_name"], entry["bbox"]) == (44, "bottle", [0, 0, 8, 8])
    assert entry["segmentation"]["size"] == [16, 16] and sum(entry["segmentation"]["counts"]) == 256
