# SPDX-License-Identifier: Apache-2.0
"""Import detection's operators: suppression, RoIAlign, stable sorting and resizing."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ..te import nms, roi_align


def convert_nms(node: Any, importer: Any) -> relax.Var:
    """`tvm_involution::nms` -> a call of `te.nms`."""
    *tensors, score_threshold, iou_threshold, max_output = node.args
    boxes, scores, groups = (importer.env[x] for x in tensors)
    return importer.block_builder.emit_te(
        nms, boxes, scores, groups, score_threshold, iou_threshold, max_output, primfunc_name_hint="nms"
    )


def convert_roi_align(node: Any, importer: Any) -> relax.Var:
    """`tvm_involution::roi_align` -> a call of `te.roi_align`, which reads and writes channels last."""
    features, rois, levels, output_size, spatial_scales, sampling_ratio = node.args
    builder = importer.block_builder
    channels_last = [builder.emit(relax.op.permute_dims(importer.env[x], (0, 2, 3, 1))) for x in features]
    regions = builder.emit_te(
        roi_align,
        channels_last,
        importer.env[rois],
        importer.env[levels],
        output_size,
        list(spatial_scales),
        sampling_ratio,
        primfunc_name_hint="roi_align",
    )
    return builder.emit(relax.op.permute_dims(regions, (0, 3, 1, 2)))


def convert_sort_stable(node: Any, importer: Any) -> relax.Var:
    """`aten::sort.stable` -> argsort, which is stable in TVM, and a gather."""
    x = importer.env[node.args[0]]
    dim, descending = int(node.kwargs.get("dim", -1)), bool(node.kwargs.get("descending", False))
    order = importer.block_builder.emit(relax.op.argsort(x, dim, descending, dtype="int64"))
    values = importer.block_builder.emit(relax.op.gather_elements(x, order, axis=dim))
    return importer.block_builder.emit(relax.Tuple([values, order]))


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
