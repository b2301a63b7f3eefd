# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.roi_align` over a pyramid, legalized to `tvm_involution.te.roi_align`.

Arguments: a tuple of levels (N, H_i, W_i, C), rois (N, R, 4), levels (N, R); attributes: output_size (S),
spatial_scales, sampling_ratio. Output: (N * R, S, S, C). See `tvm_involution.te.roi_align` for what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from ...te import roi_align as te_roi_align
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.roi_align"


def roi_align(
    features: Sequence[relax.Expr],
    rois: relax.Expr,
    levels: relax.Expr,
    output_size: int,
    spatial_scales: Sequence[float],
    sampling_ratio: int,
) -> relax.Call:
    """Call the operator."""
    attrs = make_attrs(
        output_size=int(output_size),
        spatial_scales=[float(scale) for scale in spatial_scales],
        sampling_ratio=int(sampling_ratio),
    )
    return relax.Call(_OP, [relax.Tuple(list(features)), rois, levels], attrs)


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.TensorType:
    first, rois = call.args[0].ty.fields[0], call.args[1].ty
    size = int(call.attrs["output_size"])
    return relax.TensorType([rois.shape[0] * rois.shape[1], size, size, first.shape[3]], first.dtype)


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    features, rois, levels = call.args
    attrs = call.attrs
    return bb.call_te(
        te_roi_align,
        [bb.emit(relax.TupleGetItem(features, i)) for i in range(len(features.ty.fields))],
        rois,
        levels,
        output_size=int(attrs["output_size"]),
        spatial_scales=[float(scale) for scale in attrs["spatial_scales"]],
        sampling_ratio=int(attrs["sampling_ratio"]),
        primfunc_name_hint="roi_align",
    )


_OP = register_operator(
    OP_NAME,
    "Average bilinear samples of each cell of each region (RoIAlign over a pyramid).",
    {
        "features": "A tuple: the levels, channels last.",
        "rois": "The regions, in pixels of the image.",
        "levels": "Which level a region is read from.",
    },
    _infer_type,
    _legalize,
)
