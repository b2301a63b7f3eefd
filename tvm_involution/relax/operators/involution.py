# SPDX-License-Identifier: Apache-2.0
"""The Relax operators `tvm_involution.involution1d`, `involution2d` and `involution3d`.

Registered from Python with what every operator of Relax has: type (shape) inference, layout inference for
`ConvertLayout`, and legalization to `tvm_involution.te.involution`. The kernel comes packed, as the span
convolution makes it (section 3.2 of arXiv 2103.06255), so that a change of layout moves the two inputs alike:

    layout    x             kernel                  output
    NCHW      (N, C, H, W)  (N, G*KH*KW, OH, OW)    (N, C, OH, OW)
    NHWC      (N, H, W, C)  (N, OH, OW, G*KH*KW)    (N, OH, OW, C)

and so in NCW, NWC, NCDHW and NDHWC.

Attributes: kernel_size, stride, padding, dilation with a number for each axis, and layout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from ...errors import UserError
from ...te import involution as te_involution
from ...te import involution2d_output_size
from ...te.checks import LAYOUTS, space_of
from .register import make_attrs, register_operator

OP_NAMES = {axes: f"tvm_involution.involution{axes}d" for axes in (1, 2, 3)}
OP_NAME = OP_NAMES[2]
CHANNELS_LAST = {len(space_of(layout)): layout for layout in LAYOUTS if layout.endswith("C")}
_PER_AXIS = ("kernel_size", "stride", "padding", "dilation")


def involution(
    x: relax.Expr,
    kernel: relax.Expr,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    layout: str,
) -> relax.Call:
    """Call the operator of as many axes as `layout` has; shapes as in the table at the top of this file.

    Raises:
        UserError: when the call is normalized and the shapes do not fit, with the shapes in the message.
    """
    attrs = _attrs(kernel_size, stride, padding, dilation, layout)
    return relax.Call(_OPS[len(space_of(layout))], [x, kernel], attrs)


def involution2d(
    x: relax.Expr,
    kernel: relax.Expr,
    kernel_size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    layout: str = "NCHW",
) -> relax.Call:
    """`involution` along two axes."""
    return involution(x, kernel, kernel_size, stride, padding, dilation, layout)


def _attrs(kernel_size: Any, stride: Any, padding: Any, dilation: Any, layout: str) -> tvm.ir.Attrs:
    return make_attrs(
        kernel_size=[int(v) for v in kernel_size],
        stride=[int(v) for v in stride],
        padding=[int(v) for v in padding],
        dilation=[int(v) for v in dilation],
        layout=layout,
    )


def _per_axis(attrs: tvm.ir.Attrs) -> dict[str, tuple[int, ...]]:
    return {name: tuple(int(value) for value in attrs[name]) for name in _PER_AXIS}


def _name(call: relax.Call) -> str:
    return str(call.op.name).removeprefix("tvm_involution.")


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.Type:
    x, kernel = (arg.ty for arg in call.args)
    name = _name(call)
    axes = next(axes for axes, op_name in OP_NAMES.items() if op_name == call.op.name)
    for role, ty in (("x", x), ("kernel", kernel)):
        if not isinstance(ty, relax.TensorType) or ty.ndim != 2 + axes or ty.shape is None:
            raise UserError(f"{name}: {role} must be a tensor of rank {2 + axes} with a known shape, got {ty}")
    if x.dtype != kernel.dtype:
        raise UserError(f"{name}: x is {x.dtype} and kernel {kernel.dtype}; they must be the same")
    layout, layouts = str(call.attrs["layout"]), [known for known in LAYOUTS if len(known) == 2 + axes]
    if layout not in layouts:
        raise UserError(f"{name}: layout {layout} is unknown; expected one of {', '.join(layouts)}")

    given = _per_axis(call.attrs)
    taps = math.prod(given["kernel_size"])
    x_dims = dict(zip(layout, x.shape.values, strict=True))
    kernel_dims = dict(zip(layout, kernel.shape.values, strict=True))
    out_dims = dict(x_dims)
    for axis, dim in enumerate(space_of(layout)):
        out_dims[dim] = involution2d_output_size(x_dims[dim], *(given[each][axis] for each in _PER_AXIS))

    analyzer = tvm.sym.Analyzer()
    groups, rest = divmod(int(kernel_dims["C"]), taps)
    shapes = f"x {_dims(x)}, kernel {_dims(kernel)}, layout {layout}, {given}"
    if rest or groups == 0 or int(x_dims["C"]) % groups:
        raise UserError(
            f"{name}: the kernel's channels must be groups x {taps} taps, and x's channels a multiple "
            f"of the groups; got {shapes}"
        )
    for dim in f"N{space_of(layout)}":
        if not analyzer.can_prove_equal(kernel_dims[dim], out_dims[dim]):
            raise UserError(
                f"{name}: the kernel's {dim} is {kernel_dims[dim]} but the output's is {out_dims[dim]}; got {shapes}"
            )
    return relax.TensorType([out_dims[dim] for dim in layout], x.dtype)


def _dims(ty: relax.TensorType) -> str:
    """Return a shape for a message, as `[1, 64, 56, 56]`."""
    return f"[{', '.join(str(getattr(d, 'value', d)) for d in ty.shape.values)}]"


def _infer_layout(
    call: relax.Call, desired_layouts: Mapping[str, list[str]], _: Mapping[relax.Var, Any]
) -> tvm.ir.Node:
    """Ask for the layout that `ConvertLayout` wants for this operator; relabel the attributes to it."""
    current, name = str(call.attrs["layout"]), call.op.name
    layout = str(desired_layouts[name][0]) if name in desired_layouts else current
    # ConvertLayout counts in the letters of the layout that the function came in, "ABCD"
    letters = "".join("ABCDE"[current.index(dim)] for dim in layout)
    decision = tvm.ir.make_node(
        "relax.transform.LayoutDecision", layout=tvm.s_tir.slayout(letters), is_unknown_dim=False
    )
    return tvm.ir.make_node(
        "relax.transform.InferLayoutOutput",
        input_layouts=[decision, decision],
        output_layouts=[decision],
        new_attrs=_attrs(**_per_axis(call.attrs), layout=layout),
        new_args={},
    )


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return bb.call_te(
        te_involution,
        call.args[0],
        call.args[1],
        **_per_axis(call.attrs),
        layout=str(call.attrs["layout"]),
        primfunc_name_hint=_name(call),
    )


# an error that crosses the compiler comes back as what it was
tvm_ffi.register_error("UserError", UserError)
_OPS = {
    axes: register_operator(
        name,
        "Aggregate the window of each pixel with the pixel's own kernel (involution).",
        {"x": "The feature map.", "kernel": "The generated kernels, packed as (group, *taps) in channels."},
        _infer_type,
        _legalize,
        _infer_layout,
    )
    for axes, name in OP_NAMES.items()
}
