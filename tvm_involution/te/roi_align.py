# SPDX-License-Identifier: Apache-2.0
"""RoIAlign over a pyramid in NHWC: every value loops over its samples, whose number depends on the region's size."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..arguments import Count, Size, checked
from ..errors import UserError
from .blocks import Block
from .checks import check_rank, check_shape, check_single
from .loops import computed_by_loops


@checked
def roi_align(
    features: Sequence[te.Tensor],
    rois: te.Tensor,
    levels: te.Tensor,
    output_size: Size,
    spatial_scales: Sequence[float],
    sampling_ratio: Count = 0,
) -> te.Tensor:
    """Return each region's cells (N * R, S, S, C), means of bilinear samples; S is `output_size`.

    One block, `roi_align`, an output value a point.

    Args:
        features: the levels, (N, H_i, W_i, C).
        rois: (N, R, 4), (x1, y1, x2, y2) in pixels of the image.
        levels: (N, R), integers: which of `features` a region is read from.
        spatial_scales: pixels of each level to one of the image.
        sampling_ratio: samples along each side of a cell; 0 for one a pixel of the level, rounded up.
    """
    check_rank("levels", levels, 2)
    check_shape("rois", rois, (*levels.shape, 4))
    check_single(rois=rois)
    if not features or len(features) != len(spatial_scales) or min(spatial_scales) <= 0:
        raise UserError(
            f"features and spatial_scales must be as many, one or more, and the scales above 0, got {len(features)} "
            f"features and scales {list(spatial_scales)}"
        )
    first = features[0]
    for number, feature in enumerate(features):
        check_rank(f"features[{number}]", feature, 4)
        check_shape(f"features[{number}]", feature, (levels.shape[0], *feature.shape[1:3], first.shape[3]))
        check_single(**{f"features[{number}]": feature})
    batch, regions = (int(extent) for extent in levels.shape)
    channels = int(features[0].shape[3])
    return computed_by_loops(
        (batch * regions, output_size, output_size, channels),
        str(features[0].dtype),
        [*features, rois, levels],
        lambda buffers: _loops(buffers[:-3], buffers[-3:], output_size, spatial_scales, sampling_ratio),
    )


def _loops(features, buffers, output_size, spatial_scales, sampling_ratio):
    regions = int(buffers[1].shape[1])
    rois, levels, out = (T.buffer_proxy(b) for b in buffers)
    with IRBuilder() as builder:
        with T.grid(*(int(extent) for extent in buffers[2].shape)) as indices, T.sblock(Block.ROI_ALIGN):
            region, i, j, c = (T.axis.spatial(d, v) for d, v in zip(buffers[2].shape, indices, strict=True))
            n, r = region // regions, region % regions
            T.reads(
                buffers[0][n, r, 0:4], buffers[1][n, r], *(f[n, 0 : f.shape[1], 0 : f.shape[2], c] for f in features)
            )
            T.writes(buffers[2][region, i, j, c])
            out[region, i, j, c] = _f32(0)
            for level, (buffer, scale) in enumerate(zip(features, spatial_scales, strict=True)):
                feature = T.buffer_proxy(buffer)
                with T.If(levels[n, r] == level), T.Then():
                    box = [rois[n, r, edge] * _f32(scale) - _f32(0.5) for edge in range(4)]
                    rows = _Axis(box[1], box[3], int(buffer.shape[1]), output_size, sampling_ratio)
                    columns = _Axis(box[0], box[2], int(buffer.shape[2]), output_size, sampling_ratio)
                    with T.serial(0, rows.samples) as u, T.serial(0, columns.samples) as v:
                        taps = [
                            feature[n, y, x, c] * (y_weight * x_weight)
                            for y, y_weight in rows.taps(i, u)
                            for x, x_weight in columns.taps(j, v)
                        ]
                        out[region, i, j, c] = out[region, i, j, c] + sum(taps)
        return builder.get()


class _Axis:
    """The samples of a region along rows or columns of a level."""

    def __init__(self, start, stop, size: int, cells: int, sampling_ratio: int) -> None:
        self.start, self.size = start, size
        self.cell = (stop - start) / _f32(cells)
        adaptive = te.max(tirx.ceil(self.cell).astype("int32"), T.int32(0))
        self.samples = T.int32(sampling_ratio) if sampling_ratio else adaptive

    def taps(self, cell, sample):
        """Return the two (index, weight) of a sample; a sample more than a pixel outside weighs nothing."""
        samples = self.samples.astype("float32")
        step = sample.astype("float32") + _f32(0.5)
        position = self.start + cell.astype("float32") * self.cell + step * self.cell / samples
        inside = tirx.all(position >= _f32(-1), position <= _f32(self.size))
        weight = tirx.Select(inside, _f32(1) / samples, _f32(0))
        # NaN counts as 0, unlike in a maximum: what becomes an index must lie within the level
        position = te.min(tirx.Select(position > _f32(0), position, _f32(0)), _f32(self.size - 1))
        low = position.astype("int32")
        fraction = position - low.astype("float32")
        high = te.min(low + 1, T.int32(self.size - 1))
        return (low, weight * (_f32(1) - fraction)), (high, weight * fraction)


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
