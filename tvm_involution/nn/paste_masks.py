# SPDX-License-Identifier: Apache-2.0
"""Pasting masks into the image as a PyTorch operator, `torch.ops.tvm_involution.paste_masks`.

As mmdet's FCNMaskHead does it (`_do_paste_mask` and its `mask_thr_binary`), for all objects at once and without a float
image for any of them: the masks come out as truth values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Size, checked
from ..errors import UserError
from .ops import LIBRARY
from .plain_tensors import check_floating, check_plain, wide

LIBRARY.define("paste_masks(Tensor masks, Tensor boxes, SymInt height, SymInt width, float threshold) -> Tensor")


@checked
def paste_masks(masks: Tensor, boxes: Tensor, height: Size, width: Size, threshold: float = 0.5) -> Tensor:
    """Find the pixels where a mask, laid over its box, is at least `threshold`.

    Pixels' centres are interpolated between the centres of the mask's cells, beyond which it falls to 0: at a
    threshold of 0 or below, that is every pixel outside.

    Args:
        masks: (N, M, S, S), probabilities.
        boxes: (N, M, 4), (x1, y1, x2, y2) in pixels of the image; one without area covers no pixel.
        height: rows of the image, in pixels.
        width: its columns.

    Returns:
        (N, M, height, width) bool.

    Raises:
        UserError: shapes, dtypes or devices that do not fit.
    """
    check_plain("paste_masks", masks=masks, boxes=boxes)
    return torch.ops.tvm_involution.paste_masks(masks, boxes, height, width, threshold)


def _check(masks: Tensor, boxes: Tensor, height: int, width: int) -> None:
    check_plain("paste_masks", masks=masks, boxes=boxes)
    check_floating("paste_masks", masks=masks, boxes=boxes)
    if height < 1 or width < 1:
        raise UserError(f"paste_masks: height and width must be at least 1, got {height} and {width}")
    if masks.dim() != 4 or masks.shape[2] != masks.shape[3] or boxes.shape != (*masks.shape[:2], 4):
        raise UserError(
            f"paste_masks takes masks (N, M, S, S) and boxes (N, M, 4), got {list(masks.shape)} and {list(boxes.shape)}"
        )


@torch.library.register_fake("tvm_involution::paste_masks", lib=LIBRARY)
def _fake(masks, boxes, height, width, threshold):
    _check(masks, boxes, height, width)
    return masks.new_empty((*masks.shape[:2], height, width), dtype=torch.bool)


def _paste_masks(masks, boxes, height, width, threshold):
    _check(masks, boxes, height, width)
    masks, boxes = wide(masks, boxes)
    pasted = masks.new_empty((*masks.shape[:2], height, width), dtype=torch.bool)
    for image in range(masks.shape[0]):
        for region in range(masks.shape[1]):
            x1, y1, x2, y2 = boxes[image, region]
            rows = _interpolation(y1, y2, height, masks.shape[2])
            columns = _interpolation(x1, x2, width, masks.shape[3])
            pasted[image, region] = rows @ masks[image, region] @ columns.T >= threshold
    return pasted


def _interpolation(start: Tensor, stop: Tensor, pixels: int, cells: int) -> Tensor:
    """Return (pixels, cells): the weights of the cells for each pixel's centre along one axis."""
    centers = torch.arange(pixels, device=start.device, dtype=start.dtype) + 0.5
    position = (centers - start) / (stop - start).clamp(min=1e-6) * cells - 0.5
    return (1 - (position[:, None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)


for _key in ("CPU", "CUDA"):
    torch.library.impl(LIBRARY, "paste_masks", _key)(_paste_masks)
