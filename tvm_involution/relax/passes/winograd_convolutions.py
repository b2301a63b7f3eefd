# SPDX-License-Identifier: Apache-2.0
"""Lower 3x3 convolutions with stride 1 to Winograd's algorithm where it pays on CPUs.

With tiles of 4x4 outputs it takes a quarter of the products. Its weights are four times as large, so it needs enough
tiles to use each of them often. Measured on two AVX-512 cores: 112x112, 32 to 64 channels, 0.72 ms for 2.12; 14x14, 256
channels, 0.40 for 1.11; 7x7, 512 channels, which is below the limit, 1.33 for 1.10. Its error is five times that of the
direct sum, about 2e-6 in float32.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from ...schedules.cpu.winograd import strip_width
from ...te import conv2d_winograd, pack_winograd_weight
from ..conv2d import rewrite_convolutions
from .pack_weights import pack_width

TILE = 4
_MIN_TILES, _MIN_CHANNELS = 16, 16


@tvm.transform.module_pass(opt_level=0, name="WinogradConvolutions")
class WinogradConvolutions:
    """Rewrite `relax.nn.conv2d` (NHWC/OIHW, constant weight); nothing for other targets than CPUs."""

    def __init__(self, target: tvm.target.Target):
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those convolutions as calls of tensor programs."""
        if self.target.kind.name != "llvm":
            return mod
        return rewrite_convolutions(mod, _pays, self._lower)

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


def _pays(call: relax.Call) -> bool:
    out_channels, in_channels, *window = (int(d) for d in call.args[1].ty.shape.values)
    unit = all(int(v) == 1 for v in (*call.attrs.strides, *call.attrs.dilation))
    if window != [3, 3] or not unit or str(call.ty.dtype) not in ("float32", "float16", "bfloat16"):
        return False
    batch, height, width, _ = (int(d) for d in call.ty.shape.values)
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return tiles >= _MIN_TILES and min(out_channels, in_channels) >= _MIN_CHANNELS
