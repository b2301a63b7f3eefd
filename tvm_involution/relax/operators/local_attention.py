# SPDX-License-Identifier: Apache-2.0
"""The Relax operator `tvm_involution.local_attention2d`, legalized to `tvm_involution.te.local_attention2d`.

Arguments: query, key (N, C, H, W), value (N, CV, H, W), in layout NHWC channels last; then bias, then embedding, where
there are such, which have no layout. Attributes: num_heads, kernel_size, dilation, scale, border, layout, has_bias,
has_embedding. Output: as value. See the expression for what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tvm
from tvm import relax, te

from ...target import vector_bytes
from ...te import local_attention2d as te_local_attention2d
from .register import make_attrs, register_operator

OP_NAME = "tvm_involution.local_attention2d"


def local_attention2d(
    query: relax.Expr,
    key: relax.Expr,
    value: relax.Expr,
    bias: relax.Expr | None,
    embedding: relax.Expr | None,
    num_heads: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    scale: float,
    border: str,
    layout: str = "NCHW",
) -> relax.Call:
    """Call the operator.

    Raises:
        UserError: when the call is normalized and the shapes do not fit.
    """
    attrs = make_attrs(
        num_heads=int(num_heads),
        kernel_size=[int(v) for v in kernel_size],
        dilation=[int(v) for v in dilation],
        scale=float(scale),
        border=border,
        layout=layout,
        has_bias=bias is not None,
        has_embedding=embedding is not None,
    )
    return relax.Call(_OP, [query, key, value, *(x for x in (bias, embedding) if x is not None)], attrs)


def column_lanes(target: tvm.target.Target | None, columns: int) -> int:
    """Return how many neighbouring pixels' scores a vector of the target holds, no vector being half empty."""
    if target is None or target.kind.name != "llvm":
        return 1
    lanes = vector_bytes(target) // 4
    while lanes >= 2 * columns:
        lanes //= 2
    return lanes


def _expression(call: relax.Call, lanes: int, *inputs: te.Tensor) -> te.Tensor:
    attrs = call.attrs
    query, key, value, *positions = inputs
    return te_local_attention2d(
        query,
        key,
        value,
        kernel_size=[int(v) for v in attrs["kernel_size"]],
        num_heads=int(attrs["num_heads"]),
        dilation=[int(v) for v in attrs["dilation"]],
        scale=float(attrs["scale"]),
        layout=str(attrs["layout"]),
        bias=positions.pop(0) if attrs["has_bias"] else None,
        embedding=positions.pop(0) if attrs["has_embedding"] else None,
        border=str(attrs["border"]),
        lanes=lanes,
    )


def _infer_type(call: relax.Call, _: relax.BlockBuilder) -> relax.TensorType:
    inputs = [te.placeholder(argument.ty.shape.values, str(argument.ty.dtype)) for argument in call.args]
    output = _expression(call, 1, *inputs)
    return relax.TensorType(list(output.shape), output.dtype)


def _infer_layout(
    call: relax.Call, desired_layouts: Mapping[str, list[str]], _: Mapping[relax.Var, Any]
) -> tvm.ir.Node:
    """Ask for the layout that `ConvertLayout` wants for this operator; bias and embedding keep theirs."""
    current = str(call.attrs["layout"])
    layout = str(desired_layouts[OP_NAME][0]) if OP_NAME in desired_layouts else current
    letters = "".join("ABCD"[current.index(dim)] for dim in layout)

    def decision(letters: str) -> tvm.ir.Node:
        return tvm.ir.make_node(
            "relax.transform.LayoutDecision", layout=tvm.s_tir.slayout(letters), is_unknown_dim=False
        )

    return tvm.ir.make_node(
        "relax.transform.InferLayoutOutput",
        input_layouts=[decision(letters)] * 3 + [decision("ABC")] * (len(call.args) - 3),
        output_layouts=[decision(letters)],
        new_attrs=make_attrs(**{**dict(call.attrs.items()), "layout": layout}),
        new_args={},
    )


def _legalize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    columns = call.args[0].ty.shape.values[str(call.attrs["layout"]).index("W")]
    lanes = column_lanes(tvm.target.Target.current(allow_none=True), int(columns))
    return bb.call_te(
        lambda *inputs: _expression(call, lanes, *inputs), *call.args, primfunc_name_hint="local_attention2d"
    )


_OP = register_operator(
    OP_NAME,
    "Attend from every pixel to the window around it.",
    {
        "query": "Of every pixel.",
        "key": "Of every pixel.",
        "value": "Of every pixel, perhaps of another width.",
        "bias": "Added to the scores by the position in the window; may be absent.",
        "embedding": "Added to the keys by the position in the window; may be absent.",
    },
    _infer_type,
    _legalize,
    _infer_layout,
)
