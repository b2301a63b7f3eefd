# SPDX-License-Identifier: Apache-2.0
"""Pasting masks against torch's grid_sample, which mmdet pastes with."""

from __future__ import annotations

import pytest
import torch
from detections import random_masks

from tvm_involution import UserError
from tvm_involution.nn import paste_masks


def sample(mask: torch.Tensor, box: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the mask at the pixels' centres (height, width), as mmdet's `_do_paste_mask` does."""
    x = (torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    return torch.nn.functional.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]


def test_as_grid_sample(rng):
    masks, boxes = random_masks(rng, 5)
    pasted = paste_masks(masks, boxes, 30, 40)
    assert pasted.shape == (2, 5, 30, 40) and pasted.dtype == torch.bool
    for image in range(2):
        for region in range(4):
            sampled = sample(masks[image, region], boxes[image, region], 30, 40)
            sure = (sampled - 0.5).abs() > 1e-4
            assert torch.equal(pasted[image, region][sure], (sampled >= 0.5)[sure])
        assert not pasted[image, 4].any()


@pytest.mark.parametrize(("threshold", "areas"), [(0.2, [24, 24]), (0.5, [0, 24]), (0.8, [0, 0])])
def test_even_masks_fill_their_boxes(threshold, areas):
    masks = torch.tensor([0.25, 0.75])[None, :, None, None].expand(1, 2, 4, 4)
    boxes = torch.tensor([2.0, 3, 6, 9]).expand(1, 2, 4)
    pasted = paste_masks(masks, boxes, 12, 12, threshold)
    assert pasted.sum((2, 3)).tolist() == [areas]
    assert pasted[:, :, 3:9, 2:6].sum((2, 3)).tolist() == [areas]


def test_operator_is_registered_soundly(rng):
    masks, boxes = random_masks(rng, 3)
    torch.library.opcheck(torch.ops.tvm_involution.paste_masks.default, (masks, boxes, 30, 40, 0.5))


def test_shapes_that_do_not_fit():
    with pytest.raises(UserError, match=r"boxes \(N, M, 4\), got \[1, 2, 7, 7\] and \[1, 3, 4\]"):
        paste_masks(torch.zeros(1, 2, 7, 7), torch.zeros(1, 3, 4), 8, 8)
