# SPDX-License-Identifier: Apache-2.0
"""From operators of torch to Relax where TVM's importer has none, or another meaning."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ..relax.operators.nms import nms
from ..relax.operators.paste_masks import paste_masks
from ..relax.operators.roi_align import roi_align


def convert_nms(node: Any, importer: Any) -> relax.Var:
    """`tvm_involution::nms` -> `tvm_involution.nms`."""
    boxes, scores, groups = (importer.env[x] for x in node.args[:3])
    return importer.block_builder.emit(nms(boxes, scores, groups, *node.args[3:]))


def convert_roi_align(node: Any, importer: Any) -> relax.Var:
    """`tvm_involution::roi_align` -> `tvm_involution.roi_align`, which reads and writes channels last."""
    features, rois, levels, *arguments = node.args
    builder = importer.block_builder
    channels_last = [builder.emit(relax.op.permute_dims(importer.env[x], (0, 2, 3, 1))) for x in features]
    regions = builder.emit(roi_align(channels_last, importer.env[rois], importer.env[levels], *arguments))
    return builder.emit(relax.op.permute_dims(regions, (0, 3, 1, 2)))


def convert_paste_masks(node: Any, importer: Any) -> relax.Var:
    """`tvm_involution::paste_masks` -> `tvm_involution.paste_masks`."""
    masks, boxes, *arguments = node.args
    return importer.block_builder.emit(paste_masks(importer.env[masks], importer.env[boxes], *arguments))


def convert_sort_stable(node: Any, importer: Any) -> relax.Var:
    """`aten::sort.stable` -> argsort, which is stable in TVM, and a gather."""
    x = importer.env[node.args[0]]
    dim, descending = int(node.kwargs.get("dim", -1)), bool(node.kwargs.get("descending", False))
    order = importer.block_builder.emit(relax.op.argsort(x, dim, descending, dtype="int64"))
    values = importer.block_builder.emit(relax.op.gather_elements(x, order, axis=dim))
    return importer.block_builder.emit(relax.Tuple([values, order]))


def convert_amax(node: Any, importer: Any) -> relax.Var:
    """`aten::amax` -> `max`."""
    x = importer.env[node.args[0]]
    dims = list(node.args[1]) if len(node.args) > 1 else []
    keepdims = len(node.args) > 2 and bool(node.args[2])
    return importer.block_builder.emit(relax.op.max(x, dims or None, keepdims))


def convert_softshrink(node: Any, importer: Any) -> relax.Var:
    """`aten::softshrink` -> what lies outside of the threshold; TVM multiplies by comparisons, which NaN fails."""
    x = importer.env[node.args[0]]
    threshold = float(node.args[1]) if len(node.args) > 1 else 0.5
    inside = importer.block_builder.emit(relax.op.clip(x, -threshold, threshold))
    return importer.block_builder.emit(relax.op.subtract(x, inside))


def convert_squeeze(node: Any, importer: Any) -> relax.Var:
    """`aten::squeeze` -> `squeeze` of axes counted from the front; `ConvertLayout` crashes over negative ones."""
    x, shape = importer.env[node.args[0]], node.args[0].meta["val"].shape
    dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
    axes = [dim % len(shape) for dim in dims if shape[dim] == 1]
    return importer.block_builder.emit(relax.op.squeeze(x, axes)) if axes else x


def convert_nearest(node: Any, importer: Any) -> relax.Var:
    """`aten::upsample_nearest2d` -> `resize2d` that takes the pixel at or before, as torch does, not the nearest."""
    height, width = node.meta["val"].shape[2:]
    return importer.block_builder.emit(
        relax.op.image.resize2d(
            importer.env[node.args[0]],
            (int(height), int(width)),
            layout="NCHW",
            method="nearest_neighbor",
            coordinate_transformation_mode="asymmetric",
            rounding_method="floor",
        )
    )
