# SPDX-License-Identifier: Apache-2.0
"""Registering a Relax operator from Python, with what every operator of Relax has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import _ffi_api as ir_ffi

InferType = Callable[[relax.Call, relax.BlockBuilder], relax.Type]
Legalize = Callable[[relax.BlockBuilder, relax.Call], relax.Expr]


def register_operator(
    name: str,
    description: str,
    arguments: Mapping[str, str],
    infer_type: InferType,
    legalize: Legalize,
    infer_layout: Callable[..., Any] | None = None,
) -> tvm.ir.Op:
    """Register a pure operator and return it.

    Args:
        arguments: name -> what it is, in order.
        infer_type: the type of a call, from the types of its arguments and its attributes.
        legalize: the call as a call of a tensor program.
        infer_layout: what `ConvertLayout` asks for; without it, arguments and output keep their layouts.
    """
    ir_ffi.RegisterOp(name, description)
    op = tvm.ir.Op.get(name)
    op.set_num_inputs(len(arguments))
    for argument, meaning in arguments.items():
        op.add_argument(argument, "Expr", meaning)
    op.set_attr("FPurity", True)
    op.set_attr("FInferType", infer_type)
    op.set_attr("FLegalize", legalize)
    if infer_layout is not None:
        op.set_attr("FRelaxInferLayout", infer_layout)
    return op


def make_attrs(**values: Any) -> tvm.ir.Attrs:
    """Return the attributes of a call: numbers, strings, lists of them."""
    return tvm.ir.make_node("ir.DictAttrs", **values)
