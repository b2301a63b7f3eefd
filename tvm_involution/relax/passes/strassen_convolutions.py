# SPDX-License-Identifier: Apache-2.0
"""Lower 1x1 convolutions in float32 to a step of Strassen's algorithm where it pays on CPUs."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ...schedules.cpu.packed_gemm import widest_pack
from ...schedules.cpu.strassen import strassen_pays
from ...te import conv2d_strassen, pack_strassen_weight
from ..conv2d import rewrite_convolutions


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
        _, in_channels, *window = (int(d) for d in call.args[1].ty.shape.values)
        if window != [1, 1] or any(int(p) for p in call.attrs.padding) or str(call.ty.dtype) != "float32":
            return False
        return strassen_pays([int(d) for d in call.ty.shape.values], in_channels, self.target)
