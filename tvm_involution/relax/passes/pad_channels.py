# SPDX-License-Identifier: Apache-2.0
"""Give pictures a fourth channel of zeros on GPUs, where they are transposed anyway.

A convolution's windows go to shared memory in vectors of channels that lie side by side: of three there are none, and
every element is a load of its own. The transposition of the input to NHWC writes the zeros, the weight's are nothing.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import GenericConst

from ..conv2d import is_dense_nhwc, is_static
from ..rewrite import Graph, is_call, rewrite_calls

_CHANNELS = 4


@tvm.transform.module_pass(opt_level=0, name="PadChannels")
class PadChannels:
    """Rewrite `conv2d(permute_dims(x), W)` (NHWC/OIHW, W constant) of fewer than four channels for GPUs."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those convolutions of four channels."""
        return rewrite_calls(mod, {"relax.nn.conv2d": _pad}) if self.target.kind.name == "cuda" else mod


def _pad(call: relax.Call, graph: Graph) -> relax.Expr:
    x, weight = call.args
    if not isinstance(weight, GenericConst) or not is_dense_nhwc(call) or not is_static(call):
        return call
    array = weight.value.numpy()
    missing = _CHANNELS - array.shape[1]
    if missing <= 0 or array[0, 0].size == 1 or not is_call(graph.bound(x), "relax.permute_dims"):
        return call
    attrs = call.attrs
    return relax.op.nn.conv2d(
        graph.emit(relax.op.nn.pad(x, [0] * 7 + [missing])),
        relax.const(np.pad(array, ((0, 0), (0, missing), (0, 0), (0, 0))), str(weight.ty.dtype)),
        strides=attrs.strides,
        padding=attrs.padding,
        dilation=attrs.dilation,
        data_layout="NHWC",
        out_dtype=attrs.out_dtype,
    )
