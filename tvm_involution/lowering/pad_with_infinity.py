# SPDX-License-Identifier: Apache-2.0
"""Pad by -inf what maxima are pooled of, as torch does; TVM takes the least finite number, which -inf is less than."""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm_ffi import structural_equal, structural_map

from ..te.blocks import Block

# of TVM's pooling; a schedule may have inlined the first into the second
_BLOCKS = (Block.PADDED, Block.POOL_MAX)


@tvm.transform.module_pass(opt_level=0, name="PadWithInfinity")
class PadWithInfinity:
    """Replace the padding in scheduled programs, whose tuning records are found by what TVM made."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` rewritten."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(structural_map(func.body, (s_tir.SBlock, _pad)))
        return mod


def _pad(block: s_tir.SBlock) -> s_tir.SBlock:
    return structural_map(block, (tvm.ir.Call, _with_infinity)) if block.name_hint.startswith(_BLOCKS) else block


def _with_infinity(call: tvm.ir.Call) -> tvm.ir.Call:
    """Rewrite `if_then_else(inside, x, least)`."""
    if getattr(call.op, "name", "") != "tirx.if_then_else" or "float" not in str(call.ty.dtype):
        return call
    inside, value, padding = call.args
    dtype = str(call.ty.dtype)
    if not structural_equal(padding, tirx.min_value(dtype)):
        return call
    return tirx.if_then_else(inside, value, tirx.const(-math.inf, dtype))
