# SPDX-License-Identifier: Apache-2.0
"""Lower 3x3 convolutions with stride 1 to Winograd's algorithm where it pays on CPUs."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ...schedules.cpu.amx import has_amx
from ...schedules.cpu.packed_gemm import pack_width
from ...schedules.cpu.winograd import TILE, strip_width, winograd_pays
from ...te import conv2d_winograd, pack_winograd_weight
from ..conv2d import rewrite_convolutions


@tvm.transform.module_pass(opt_level=0, name="WinogradConvolutions")
class WinogradConvolutions:
    """Rewrite `relax.nn.conv2d` (NHWC/OIHW, constant weight); nothing for other targets than CPUs."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those convolutions as calls of tensor programs."""
        if self.target.kind.name != "llvm":
            return mod
        return rewrite_convolutions(mod, self._pays, self._lower)

    def _lower(self, builder: relax.BlockBuilder, call: relax.Call, x: relax.Expr, weight: np.ndarray) -> relax.Expr:
        out_channels, tiles = weight.shape[0], -(-int(call.ty.shape[2]) // TILE)
        return builder.call_te(
            conv2d_winograd,
            x,
            relax.const(pack_winograd_weight(weight, TILE, pack_width(self.target, out_channels))),
            out_channels=out_channels,
            padding=tuple(int(p) for p in call.attrs.padding),
            strip=strip_width(tiles, self.target),
            primfunc_name_hint="conv2d_winograd",
        )

    def _pays(self, call: relax.Call) -> bool:
        _, in_channels, *window = (int(d) for d in call.args[1].ty.shape.values)
        unit = all(int(v) == 1 for v in (*call.attrs.strides, *call.attrs.dilation))
        if window != [3, 3] or not unit or str(call.ty.dtype) not in ("float32", "float16", "bfloat16"):
            return False
        if has_amx(self.target, str(call.ty.dtype)):
            return False  # its products cost less than the transformations
        return winograd_pays([int(d) for d in call.ty.shape.values], in_channels)
