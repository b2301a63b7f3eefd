# SPDX-License-Identifier: Apache-2.0
"""Reshaped, transposed and repeated weights, made with NumPy.

TVM's `FoldConstant` computes the same, but compiles a function for every shape that it meets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..constants import constant
from ..rewrite import Graph, rewrite_calls


@tvm.transform.module_pass(opt_level=0, name="FoldViews")
class FoldViews:
    """Replace `reshape`, `permute_dims` and `broadcast_to` of constants by constants."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those calls folded."""
        return rewrite_calls(mod, dict.fromkeys(_VIEWS, _fold))


def _fold(call: relax.Call, graph: Graph) -> relax.Expr:
    source = call.args[0] if isinstance(call.args[0], GenericConst) else graph.bound(call.args[0])
    if not isinstance(source, GenericConst):
        return call
    return constant(_VIEWS[call.op.name](source.value.numpy(), call), str(source.ty.dtype))


def _shape(call: relax.Call) -> list[int]:
    return [int(d) for d in call.args[1].values]


def _axes(call: relax.Call) -> list[int] | None:
    return None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]


_VIEWS: dict[str, Callable[[np.ndarray, relax.Call], np.ndarray]] = {
    "relax.reshape": lambda array, call: array.reshape(_shape(call)),
    "relax.broadcast_to": lambda array, call: np.broadcast_to(array, _shape(call)),
    "relax.permute_dims": lambda array, call: array.transpose(_axes(call)),
}
