# SPDX-License-Identifier: Apache-2.0
"""Detectors' own operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm import relax

from ...relax.operators import nms as _nms
from ...relax.operators import paste_masks as _paste_masks
from ...relax.operators import roi_align as _roi_align
from .operation import Operation


def nms(operation: Operation, boxes: relax.Expr, scores: relax.Expr, groups: relax.Expr, *settings: Any) -> relax.Expr:
    """`tvm_involution::nms` -> `tvm_involution.nms`."""
    return _nms.nms(boxes, scores, groups, *settings)


def roi_align(
    operation: Operation, features: Sequence[relax.Expr], rois: relax.Expr, levels: relax.Expr, *settings: Any
) -> relax.Expr:
    """`tvm_involution::roi_align` -> `tvm_involution.roi_align`, which reads and writes channels last."""
    channels_last = [operation.emit(relax.op.permute_dims(level, (0, 2, 3, 1))) for level in features]
    regions = operation.emit(_roi_align.roi_align(channels_last, rois, levels, *settings))
    return relax.op.permute_dims(regions, (0, 3, 1, 2))


def paste_masks(operation: Operation, masks: relax.Expr, boxes: relax.Expr, *settings: Any) -> relax.Expr:
    """`tvm_involution::paste_masks` -> `tvm_involution.paste_masks`."""
    return _paste_masks.paste_masks(masks, boxes, *settings)
