# SPDX-License-Identifier: Apache-2.0
"""RoIAlign (arXiv 1703.06870) over a pyramid as a PyTorch operator, `torch.ops.tvm_involution.roi_align`.

Each region is read from the one level that it is assigned to, as by mmdet's SingleRoIExtractor with mmcv's RoIAlign
(`aligned=True`): one operator for all levels, so that the regions' number stays fixed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..arguments import Count, Size, checked
from ..errors import UserError
from .ops import LIBRARY
from .plain_tensors import check_floating, check_integers, check_plain, wide

LIBRARY.define(
    "roi_align(Tensor[] features, Tensor rois, Tensor levels, SymInt output_size, float[] spatial_scales, "
    "int sampling_ratio) -> Tensor"
)


@checked
def roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: Size,
    spatial_scales: Sequence[float],
    sampling_ratio: Count = 0,
) -> Tensor:
    """Average bilinear samples of each cell of each region.

    Args:
        features: the levels, (N, C, H_i, W_i).
        rois: (N, R, 4), (x1, y1, x2, y2) in pixels of the image.
        levels: (N, R), integers: which of `features` a region is read from; where there is none such, it is all 0.
        output_size: rows and columns of cells.
        spatial_scales: pixels of each level to one of the image, 1 / stride.
        sampling_ratio: samples along each side of a cell; 0 for one a pixel of the level, rounded up.

    Returns:
        (N * R, C, output_size, output_size).

    Raises:
        UserError: shapes, dtypes or devices that do not fit.
    """
    named = {f"features[{i}]": feature for i, feature in enumerate(features)}
    check_plain("roi_align", **named, rois=rois, levels=levels)
    return torch.ops.tvm_involution.roi_align(
        list(features), rois, levels, output_size, list(spatial_scales), sampling_ratio
    )


def assign_levels(rois: Tensor, num_levels: int, finest_scale: float = 56.0) -> Tensor:
    """Return the level (..., ) int64 that each region (..., 4) is read from.

    A region of `finest_scale` pixels or fewer is read from level 0, and each doubling from the next one (equation 1
    of arXiv 1612.03144, with mmdet's constant).
    """
    x1, y1, x2, y2 = rois.split(1, -1)
    scale = ((x2 - x1) * (y2 - y1)).reshape(rois.shape[:-1]).sqrt()
    return (scale / finest_scale + 1e-6).log2().floor().clamp(0, num_levels - 1).to(torch.int64)


def _check(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: int,
    spatial_scales: Sequence[float],
    sampling_ratio: int,
) -> None:
    named = {f"features[{i}]": feature for i, feature in enumerate(features)}
    check_plain("roi_align", **named, rois=rois, levels=levels)
    check_floating("roi_align", **named, rois=rois)
    if output_size < 1 or sampling_ratio < 0:
        raise UserError(
            f"roi_align: output_size must be at least 1 and sampling_ratio at least 0, got {output_size} and "
            f"{sampling_ratio}"
        )
    shapes = [list(x.shape) for x in features]
    if (
        not features
        or len(features) != len(spatial_scales)
        or any(len(s) != 4 or s[:2] != shapes[0][:2] for s in shapes)
    ):
        raise UserError(
            f"roi_align takes levels (N, C, H_i, W_i) with one spatial scale each, got {shapes} and "
            f"{list(spatial_scales)}"
        )
    if rois.dim() != 3 or rois.shape[2] != 4 or rois.shape[:2] != levels.shape or rois.shape[0] != shapes[0][0]:
        raise UserError(
            f"roi_align takes rois ({shapes[0][0]}, R, 4) and levels ({shapes[0][0]}, R), got {list(rois.shape)} and "
            f"{list(levels.shape)}"
        )
    check_integers("roi_align", levels=levels)


@torch.library.register_fake("tvm_involution::roi_align", lib=LIBRARY)
def _fake(features, rois, levels, output_size, spatial_scales, sampling_ratio):
    _check(features, rois, levels, output_size, spatial_scales, sampling_ratio)
    n, regions = rois.shape[:2]
    return features[0].new_empty((n * regions, features[0].shape[1], output_size, output_size))


def _roi_align(features, rois, levels, output_size, spatial_scales, sampling_ratio):
    _check(features, rois, levels, output_size, spatial_scales, sampling_ratio)
    n, regions = rois.shape[:2]
    out = features[0].new_zeros((n, regions, features[0].shape[1], output_size, output_size))
    for image in range(n):
        for region in range(regions):
            level = int(levels[image, region])
            if not 0 <= level < len(features):
                continue
            x, box = wide(features[level][image], rois[image, region])
            out[image, region] = _align(x, box * spatial_scales[level] - 0.5, output_size, sampling_ratio)
    return out.flatten(0, 1)


def _align(x: Tensor, box: Tensor, output_size: int, sampling_ratio: int) -> Tensor:
    """Pool one region of x (C, H, W): interpolation is separable, so it is one matrix for rows and one for columns."""
    rows, seen_rows = _sampling_matrix(box[1], box[3], x.shape[1], output_size, sampling_ratio)
    columns, seen_columns = _sampling_matrix(box[0], box[2], x.shape[2], output_size, sampling_ratio)
    return rows @ x[:, seen_rows, seen_columns] @ columns.T


def _sampling_matrix(start: Tensor, stop: Tensor, size: int, cells: int, sampling_ratio: int) -> tuple[Tensor, slice]:
    """Return (cells, seen): each cell's mean of linear samples along one axis, and which part of `size` is seen.

    A sample more than a pixel outside counts as 0; one less far outside takes the border's value.
    """
    cell = (stop - start) / cells
    samples = sampling_ratio or (max(math.ceil(cell), 0) if cell.isfinite() else 0)
    if samples == 0:
        return cell.new_zeros(cells, 1), slice(0, 1)
    steps = torch.arange(samples, device=cell.device, dtype=cell.dtype) + 0.5
    first = start + torch.arange(cells, device=cell.device, dtype=cell.dtype)[:, None] * cell
    position = first + steps * cell / samples
    weight = ((position >= -1) & (position <= size)).to(cell.dtype) / samples
    position = position.nan_to_num(0).clamp(0, size - 1)
    low = position.floor()
    fraction = position - low
    low, high = low.long(), (low + 1).clamp(max=size - 1).long()
    seen = slice(int(low.min()), int(high.max()) + 1)
    matrix = cell.new_zeros(cells, seen.stop - seen.start)
    matrix.scatter_add_(1, low - seen.start, weight * (1 - fraction))
    return matrix.scatter_add_(1, high - seen.start, weight * fraction), seen


for _key in ("CPU", "CUDA"):
    torch.library.impl(LIBRARY, "roi_align", _key)(_roi_align)
