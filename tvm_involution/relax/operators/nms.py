# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.nms`: greedy suppression, legalized to `tvm_involution.te.nms`.

Arguments: boxes (N, K, 4), scores (N, K), groups (N, K); attributes: score_threshold, iou_threshold, max_output.
Output: (N, max_output) int64. See `tvm_involution.te.nms` for what they mean.
"""

from __future__ import annotations

from tvm import relax

from ...te import nms as te_nms
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.nms"


def nms(
    boxes: relax.Expr,
    scores: relax.Expr,
    groups: relax.Expr,
    score_threshold: float,
    iou_threshold: float,
    max_output: int,
) -> relax.Call:
    """Call the operator."""
    attrs = make_attrs(
        score_threshold=float(score_threshold),
        iou_threshold=float(iou_threshold),
        max_output=int(max_output),
    )
    return relax.Call(_OP, [boxes, scores, groups], attrs)


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.TensorType:
    return relax.TensorType([call.args[0].ty.shape[0], int(call.attrs["max_output"])], "int64")


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    return bb.call_te(
        te_nms,
        *call.args,
        score_threshold=float(attrs["score_threshold"]),
        iou_threshold=float(attrs["iou_threshold"]),
        max_output=int(attrs["max_output"]),
        primfunc_name_hint="nms",
    )


_OP = register_operator(
    OP_NAME,
    "Keep each box that overlaps no box kept before it (greedy non-maximum suppression).",
    {
        "boxes": "In the order in which they are tried.",
        "scores": "Of the boxes.",
        "groups": "Boxes of different groups leave each other alone.",
    },
    _infer_type,
    _legalize,
)
