# SPDX-License-Identifier: Apache-2.0
"""Layouts of operators of Relax that come without: else `ConvertLayout` puts transpositions around each of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax

_ELEMENTWISE = ("relax.clip", "relax.nn.leakyrelu", "relax.nn.softplus", "relax.where")


def infer_elementwise(call: relax.Call, _: Mapping[str, list[str]], layouts: Mapping[relax.Var, Any]) -> tvm.ir.Node:
    """Follow the first argument of full rank; where one broadcasts from fewer axes nothing is laid out anew."""
    tensors = [argument for argument in call.args if isinstance(argument.ty, relax.TensorType)]
    rank = call.ty.ndim
    known = (layouts[x].layout for x in tensors if x in layouts and x.ty.ndim == rank)
    layout = next((str(found.name) for found in known if found is not None), _letters(rank))
    if any(x.ty.ndim not in (0, rank) for x in tensors):
        layout = _letters(rank)
    return tvm.ir.make_node(
        "relax.transform.InferLayoutOutput",
        input_layouts=[_decision(layout if x.ty.ndim == rank else _letters(x.ty.ndim)) for x in tensors],
        output_layouts=[_decision(layout)],
        new_attrs=call.attrs,
        new_args={},
    )


def _letters(rank: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:rank]


def _decision(layout: str) -> tvm.ir.Node:
    return tvm.ir.make_node("relax.transform.LayoutDecision", layout=tvm.s_tir.slayout(layout), is_unknown_dim=False)


for _name in _ELEMENTWISE:
    tvm.ir.Op.get(_name).set_attr("FRelaxInferLayout", infer_elementwise)
