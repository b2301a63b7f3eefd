# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.interpolate2d`, legalized to `tvm_involution.te.interpolation.interpolate2d`.

Argument: x (N, C, H, W), in layout NHWC channels last. Attributes: size (OH, OW), scales (OH / H and OW / W as the user
said them; 0 where the sizes say it), method, align_corners, antialias, layout. Output: as x, in the new size. See
`tvm_involution.te.interpolation.interpolation_taps` for what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ...te.accumulate import accumulator_dtype
from ...te.interpolation import interpolate2d as te_interpolate2d
from ...te.interpolation import interpolation_taps
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.interpolate2d"
_OUT_ELEMENTWISE_FUSABLE = 4


def interpolate2d(
    x: relax.Expr,
    size: Sequence[int],
    scales: Sequence[float | None],
    method: str,
    align_corners: bool,
    antialias: bool,
    layout: str = "NCHW",
) -> relax.Call:
    """Call the operator."""
    attrs = make_attrs(
        size=[int(v) for v in size],
        scales=[float(v or 0) for v in scales],
        method=method,
        align_corners=bool(align_corners),
        antialias=bool(antialias),
        layout=layout,
    )
    return relax.Call(_OP, [x], attrs)


def with_layout(call: relax.Call, x: relax.Expr, layout: str) -> relax.Call:
    """Return the call for x in another layout."""
    return relax.Call(_OP, [x], make_attrs(**{**dict(call.attrs.items()), "layout": layout}))


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.TensorType:
    x, layout = call.args[0].ty, str(call.attrs["layout"])
    sizes = dict(zip("HW", (int(v) for v in call.attrs["size"]), strict=True))
    return relax.TensorType([sizes.get(dim, x.shape[axis]) for axis, dim in enumerate(layout)], x.dtype)


def _infer_layout(
    call: relax.Call, desired_layouts: Mapping[str, list[str]], _: Mapping[relax.Var, Any]
) -> tvm.ir.Node:
    """Ask for the layout that `ConvertLayout` wants for this operator."""
    current = str(call.attrs["layout"])
    layout = str(desired_layouts[OP_NAME][0]) if OP_NAME in desired_layouts else current
    letters = "".join("ABCD"[current.index(dim)] for dim in layout)
    decision = tvm.ir.make_node(
        "relax.transform.LayoutDecision", layout=tvm.s_tir.slayout(letters), is_unknown_dim=False
    )
    return tvm.ir.make_node(
        "relax.transform.InferLayoutOutput",
        input_layouts=[decision],
        output_layouts=[decision],
        new_attrs=make_attrs(**{**dict(call.attrs.items()), "layout": layout}),
        new_args={},
    )


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (x,), attrs, layout = call.args, call.attrs, str(call.attrs["layout"])
    dtype = accumulator_dtype(str(x.ty.dtype))
    tables: list[np.ndarray] = []
    for dim, out, scale in zip("HW", attrs["size"], attrs["scales"], strict=True):
        taps = interpolation_taps(
            str(attrs["method"]),
            int(x.ty.shape[layout.index(dim)]),
            int(out),
            float(scale) or None,
            bool(attrs["align_corners"]),
            bool(attrs["antialias"]),
        )
        tables += [taps.places, taps.weights.astype(dtype)]
    return bb.call_te(
        te_interpolate2d,
        x,
        *map(relax.const, tables),
        layout=layout,
        primfunc_name_hint="interpolate2d",
        primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
    )


_OP = register_operator(
    OP_NAME,
    "Interpolate pictures linearly or by cubic or Lanczos filters.",
    {"x": "The pictures."},
    _infer_type,
    _legalize,
    _infer_layout,
)
