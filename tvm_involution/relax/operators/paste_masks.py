# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.paste_masks`, legalized to `tvm_involution.te.paste_masks`.

Arguments: masks (N, M, S, S), boxes (N, M, 4); attributes: height (H), width (W), threshold. Output: (N, M, H, W) bool.
See `tvm_involution.te.paste_masks` for what they mean.
"""

from __future__ import annotations

from tvm import relax

from ...te import paste_masks as te_paste_masks
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.paste_masks"


def paste_masks(masks: relax.Expr, boxes: relax.Expr, height: int, width: int, threshold: float) -> relax.Call:
    """Call the operator."""
    attrs = make_attrs(height=int(height), width=int(width), threshold=float(threshold))
    return relax.Call(_OP, [masks, boxes], attrs)


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.TensorType:
    masks, attrs = call.args[0].ty, call.attrs
    return relax.TensorType([masks.shape[0], masks.shape[1], int(attrs["height"]), int(attrs["width"])], "bool")


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    return bb.call_te(
        te_paste_masks,
        *call.args,
        height=int(attrs["height"]),
        width=int(attrs["width"]),
        threshold=float(attrs["threshold"]),
        primfunc_name_hint="paste_masks",
    )


_OP = register_operator(
    OP_NAME,
    "Find the pixels where a mask, laid over its box, is at least the threshold.",
    {"masks": "Probabilities of each region's cells.", "boxes": "Where the masks lie, in pixels of the image."},
    _infer_type,
    _legalize,
)
