# SPDX-License-Identifier: Apache-2.0
"""Masks of regions pasted into the image: two linear interpolations and a threshold."""

from __future__ import annotations

from tvm import te, tirx

from ..arguments import Size, checked
from .blocks import Block
from .checks import check_rank, check_shape, check_single


@checked
def paste_masks(masks: te.Tensor, boxes: te.Tensor, height: Size, width: Size, threshold: float = 0.5) -> te.Tensor:
    """Return the pixels (N, M, height, width) bool where a mask, laid over its box, is at least `threshold`.

    Pixels' centres are interpolated between the centres of the mask's cells, beyond which it falls to 0: at a
    threshold of 0 or below, that is every pixel outside.

    Args:
        masks: (N, M, S, S), probabilities.
        boxes: (N, M, 4), (x1, y1, x2, y2) in pixels of the image.

    Returns:
        Blocks: `mask_rows`, the masks (N, M, height, S) interpolated along the rows; `mask_columns` (N, M, width), the
        columns' places among the cells; and `masks`.
    """
    check_rank("masks", masks, 4)
    batch, regions, cells, _ = masks.shape
    check_shape("masks", masks, (batch, regions, cells, cells))
    check_shape("boxes", boxes, (batch, regions, 4))
    check_single(masks=masks, boxes=boxes)
    batch, regions, _, cells = (int(extent) for extent in masks.shape)

    def position(n, m, pixel, axis):
        """Return where a pixel's centre lies among the cells' centres, at most one outside, as for a box of NaN."""
        start, stop = boxes[n, m, axis], boxes[n, m, axis + 2]
        extent = te.max(stop - start, _f32(1e-6))
        place = (pixel.astype("float32") + _f32(0.5) - start) / extent * _f32(cells) - _f32(0.5)
        return te.min(tirx.Select(place > _f32(-1), place, _f32(-1)), _f32(cells))

    def interpolate(place, value):
        low = tirx.floor(place).astype("int32")
        fraction = place - low.astype("float32")
        below = tirx.if_then_else(tirx.all(low >= 0, low < cells), value(low), _f32(0))
        above = tirx.if_then_else(low + 1 < cells, value(low + 1), _f32(0))
        return below * (_f32(1) - fraction) + above * fraction

    rows = te.compute(
        (batch, regions, height, cells),
        lambda n, m, y, cell: interpolate(position(n, m, y, 1), lambda row: masks[n, m, row, cell]),
        name=Block.MASK_ROWS,
        tag="injective",
    )

    columns = te.compute(
        (batch, regions, width), lambda n, m, x: position(n, m, x, 0), name=Block.MASK_COLUMNS, tag="injective"
    )

    def covered(n, m, y, x):
        place = columns[n, m, x]
        value = interpolate(place, lambda column: rows[n, m, y, column])
        seen = tirx.all(place > _f32(-1), place < _f32(cells))
        return tirx.if_then_else(seen, value >= _f32(threshold), tirx.const(threshold <= 0, "bool"))

    return te.compute((batch, regions, height, width), covered, name=Block.MASKS, tag="injective")


def _f32(value: float) -> tirx.Expr:
    return tirx.const(value, "float32")
