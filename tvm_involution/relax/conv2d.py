# SPDX-License-Identifier: Apache-2.0
"""What passes that lower convolutions share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from .rewrite import Graph, rewrite_calls

Lower = Callable[[relax.BlockBuilder, relax.Call, relax.Expr, np.ndarray], relax.Expr]
"""Given a builder, a convolution, its input and its weight (O, I, KH, KW), returns what to put in its place."""


def is_nhwc(call: relax.Call) -> bool:
    """Return whether a convolution is one in NHWC by weights in OIHW, or so in three dimensions."""
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    return layouts in (("NHWC", "OIHW", "NHWC"), ("NDHWC", "OIDHW", "NDHWC"))


def is_dense_nhwc(call: relax.Call) -> bool:
    """Return whether a convolution is one as `is_nhwc` says, without groups."""
    return is_nhwc(call) and int(call.attrs.groups) == 1


def is_static(call: relax.Call) -> bool:
    """Return whether the sizes of the result are known."""
    return all(isinstance(d, tvm.tirx.IntImm) for d in call.ty.shape.values)


def rewrite_convolutions(mod: tvm.IRModule, pays: Callable[[relax.Call], bool], lower: Lower) -> tvm.IRModule:
    """Return `mod` with those convolutions by constant weights lowered of which `pays` is true; dense, static, NHWC."""

    def rewrite(call: relax.Call, graph: Graph) -> relax.Expr:
        x, weight = call.args
        constant = isinstance(weight, GenericConst)
        if not constant or not is_dense_nhwc(call) or not is_static(call) or not pays(call):
            return call
        return lower(graph.builder, call, x, weight.value.numpy())

    return rewrite_calls(mod, {"relax.nn.conv2d": rewrite})
