# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.involution2d`.

Registered from Python with what every operator of Relax has: type (shape) inference, layout inference for
`ConvertLayout`, and legalization to `tvm_involution.te.involution2d`. The kernel comes packed, as the span
convolution makes it (section 3.2 of arXiv 2103.06255), so that a change of layout moves the two inputs alike:

    layout    x             kernel                  output
    NCHW      (N, C, H, W)  (N, G*KH*KW, OH, OW)    (N, C, OH, OW)
    NHWC      (N, H, W, C)  (N, OH, OW, G*KH*KW)    (N, OH, OW, C)

Attributes: kernel_size, stride, padding, dilation as pairs (rows, columns) and layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from ...errors import UserError
from ...te import involution2d as te_involution2d
from ...te import involution2d_output_size
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.involution2d"
_LAYOUTS = ("NCHW", "NHWC")


def involution2d(
    x: relax.Expr,
    kernel: relax.Expr,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    layout: str = "NCHW",
) -> relax.Call:
    """Call the operator; shapes as in the table at the top of this file.

    Raises:
        UserError: when the call is normalized and the shapes do not fit, with the shapes in the message.
    """
    attrs = _attrs(kernel_size, stride, padding, dilation, layout)
    return relax.Call(_OP, [x, kernel], attrs)


def _attrs(kernel_size: Any, stride: Any, padding: Any, dilation: Any, layout: str) -> tvm.ir.Attrs:
    return make_attrs(
        kernel_size=[int(v) for v in kernel_size],
        stride=[int(v) for v in stride],
        padding=[int(v) for v in padding],
        dilation=[int(v) for v in dilation],
        layout=layout,
    )


def _pairs(attrs: tvm.ir.Attrs) -> dict[str, tuple[int, int]]:
    names = ("kernel_size", "stride", "padding", "dilation")
    return {name: (int(attrs[name][0]), int(attrs[name][1])) for name in names}


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.Type:
    x, kernel = (arg.ty for arg in call.args)
    for name, ty in (("x", x), ("kernel", kernel)):
        if not isinstance(ty, relax.TensorType) or ty.ndim != 4 or ty.shape is None:
            raise UserError(f"involution2d: {name} must be a tensor of rank 4 with a known shape, got {ty}")
    if x.dtype != kernel.dtype:
        raise UserError(f"involution2d: x is {x.dtype} and kernel {kernel.dtype}; they must be the same")
    layout = str(call.attrs["layout"])
    if layout not in _LAYOUTS:
        raise UserError(f"involution2d: layout {layout} is unknown; expected one of {', '.join(_LAYOUTS)}")

    pairs = _pairs(call.attrs)
    taps = pairs["kernel_size"][0] * pairs["kernel_size"][1]
    x_dims = dict(zip(layout, x.shape.values, strict=True))
    kernel_dims = dict(zip(layout, kernel.shape.values, strict=True))
    out_dims = dict(x_dims)
    for axis, dim in enumerate("HW"):
        out_dims[dim] = involution2d_output_size(
            x_dims[dim], *(pairs[n][axis] for n in ("kernel_size", "stride", "padding", "dilation"))
        )

    analyzer = tvm.sym.Analyzer()
    groups, rest = divmod(int(kernel_dims["C"]), taps)
    shapes = f"x {_dims(x)}, kernel {_dims(kernel)}, layout {layout}, {pairs}"
    if rest or groups == 0 or int(x_dims["C"]) % groups:
        raise UserError(
            f"involution2d: the kernel's channels must be groups x {taps} taps, and x's channels a multiple "
            f"of the groups; got {shapes}"
        )
    for dim in "NHW":
        if not analyzer.can_prove_equal(kernel_dims[dim], out_dims[dim]):
            raise UserError(
                f"involution2d: the kernel's {dim} is {kernel_dims[dim]} but the output's is {out_dims[dim]}; "
                f"got {shapes}"
            )
    return relax.TensorType([out_dims[dim] for dim in layout], x.dtype)


def _dims(ty: relax.TensorType) -> str:
    """Return a shape for a message, as `[1, 64, 56, 56]`."""
    return f"[{', '.join(str(getattr(d, 'value', d)) for d in ty.shape.values)}]"


def _infer_layout(
    call: relax.Call, desired_layouts: Mapping[str, list[str]], _: Mapping[relax.Var, Any]
) -> tvm.ir.Node:
    """Ask for the layout that `ConvertLayout` wants for this operator; relabel the attributes to it."""
    current = str(call.attrs["layout"])
    layout = str(desired_layouts[OP_NAME][0]) if OP_NAME in desired_layouts else current
    # ConvertLayout counts in the letters of the layout that the function came in, "ABCD"
    letters = "".join("ABCD"[current.index(dim)] for dim in layout)
    decision = tvm.ir.make_node(
        "relax.transform.LayoutDecision", layout=tvm.s_tir.slayout(letters), is_unknown_dim=False
    )
    pairs = _pairs(call.attrs)
    return tvm.ir.make_node(
        "relax.transform.InferLayoutOutput",
        input_layouts=[decision, decision],
        output_layouts=[decision],
        new_attrs=_attrs(**pairs, layout=layout),
        new_args={},
    )


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return bb.call_te(
        te_involution2d,
        call.args[0],
        call.args[1],
        **_pairs(call.attrs),
        layout=str(call.attrs["layout"]),
        primfunc_name_hint="involution2d",
    )


# an error that crosses the compiler comes back as what it was
tvm_ffi.register_error("UserError", UserError)
_OP = register_operator(
    OP_NAME,
    "Aggregate the window of each pixel with the pixel's own kernel (involution).",
    {"x": "The feature map.", "kernel": "The generated kernels, packed as (group, row, column) in channels."},
    _infer_type,
    _legalize,
    _infer_layout,
)
