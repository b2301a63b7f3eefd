# SPDX-License-Identifier: Apache-2.0
"""Lower 3x3 convolutions with stride 1 to Winograd's algorithm where it pays on CPUs.

With tiles of 4x4 outputs it takes a quarter of the products. Its weights are four times as large, so it needs enough
tiles to use each of them often. Measured on two AVX-512 cores: 112x112, 32 to 64 channels, 0.72 ms for 2.12; 14x14, 256
channels, 0.40 for 1.11; 7x7, 512 channels, which is below the limit, 1.33 for 1.10. Its error is five times that of the
direct sum, about 2e-6 in float32.
"""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

from ...schedules.cpu.winograd import strip_width
from ...te import conv2d_winograd, pack_winograd_weight
from ..rewrite import update_functions
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
        return update_functions(mod, self._lower)

    def _lower(self, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
        x, weight = wildcard(), is_const()

        def rewrite(call, matches):
            if not _pays(call):
                return call
            array = matches[weight].value.numpy()
            tiles = -(-int(call.ty.shape[2]) // TILE)
            return builder.call_te(
                conv2d_winograd,
                matches[x],
                relax.const(pack_winograd_weight(array, TILE, pack_width(self.target, array.shape[0]))),
                out_channels=array.shape[0],
                padding=tuple(int(p) for p in call.attrs.padding),
                strip=strip_width(tiles, self.target),
                primfunc_name_hint="conv2d_winograd",
            )

        return rewrite_call(is_op("relax.nn.conv2d")(x, weight), rewrite, func)


def _pays(call: relax.Call) -> bool:
    attrs, ty = call.attrs, call.ty
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    unit = all(int(v) == 1 for v in (*attrs.strides, *attrs.dilation, attrs.groups))
    if layouts != ("NHWC", "OIHW", "NHWC") or not unit or str(ty.dtype) not in ("float32", "float16", "bfloat16"):
        return False
    out_channels, in_channels, *window = (int(d) for d in call.args[1].ty.shape.values)
    if window != [3, 3] or not all(isinstance(d, tvm.tirx.IntImm) for d in ty.shape.values):
        return False
    batch, height, width, _ = (int(d) for d in ty.shape.values)
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return tiles >= _MIN_TILES and min(out_channels, in_channels) >= _MIN_CHANNELS
