# SPDX-License-Identifier: Apache-2.0
"""Lower 1x1 convolutions in float32 to a step of Strassen's algorithm where it pays on CPUs.

It takes seven eighths of the products, but its weights are 7/4 times as large, and it adds up blocks of the input and
of the result: so the sum and the output must be long enough, and the weights, which come from memory, not much larger
than what they are multiplied with. docs/benchmarks.md has the gains. The error is 1.4 times that of the direct sum.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ...te import conv2d_strassen, pack_strassen_weight
from ...te.strassen import paired_axis
from ..conv2d import rewrite_convolutions
from .pack_weights import widest_pack

_MIN_IN_CHANNELS, _MIN_OUT_CHANNELS = 64, 128
# weights to inputs and outputs, at most: RedNet-50's have 0.1 to 1.8 where it pays and 8 where it does not
_MAX_WEIGHTS = 2


@tvm.transform.module_pass(opt_level=0, name="StrassenConvolutions")
class StrassenConvolutions:
    """Rewrite `relax.nn.conv2d` (NHWC/OIHW, constant weight, 1x1); nothing for other targets than CPUs."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those convolutions as calls of tensor programs."""
        if self.target.kind.name != "llvm":
            return mod
        return rewrite_convolutions(mod, self._pays, self._lower)

    def _lower(self, builder: relax.BlockBuilder, call: relax.Call, x: relax.Expr, weight: np.ndarray) -> relax.Expr:
        return builder.call_te(
            conv2d_strassen,
            x,
            relax.const(pack_strassen_weight(weight, widest_pack(self.target))),
            stride=tuple(int(s) for s in call.attrs.strides),
            primfunc_name_hint="conv2d_strassen",
        )

    def _pays(self, call: relax.Call) -> bool:
        out_channels, in_channels, *window = (int(d) for d in call.args[1].ty.shape.values)
        if window != [1, 1] or any(int(p) for p in call.attrs.padding) or str(call.ty.dtype) != "float32":
            return False
        batch, height, width, _ = (int(d) for d in call.ty.shape.values)
        packed = in_channels % 2 == 0 and out_channels % (2 * widest_pack(self.target)) == 0
        if not packed or paired_axis(batch, height) is None:
            return False
        long_enough = in_channels >= _MIN_IN_CHANNELS and out_channels >= _MIN_OUT_CHANNELS
        maps = batch * height * width * (in_channels + out_channels)
        return long_enough and in_channels * out_channels <= _MAX_WEIGHTS * maps
