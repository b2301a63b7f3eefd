# SPDX-License-Identifier: Apache-2.0
"""Let LLVM keep the small arrays of scope `local` in registers.

TVM takes memory for them from a pool, by a call, once a tile. LLVM cannot tell that memory from a tensor's: sums
are written to it after each step that might write elsewhere, and read again by the epilogue. An array on the stack
it dissolves into registers, once it has unrolled the loops that index it.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm_ffi import structural_map

# twice the largest register file, AVX-512's
_BYTES = 4096


@tvm.transform.module_pass(opt_level=0, name="KeepLocalsInRegisters")
class KeepLocalsInRegisters:
    """Put small `local` arrays of the host's functions on the stack."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` rewritten."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(structural_map(func.body, (tirx.AllocBuffer, _on_stack)))
        return mod


def _on_stack(alloc: tirx.AllocBuffer) -> tirx.AllocBuffer:
    if not _is_small_local(alloc.buffer):
        return alloc
    # the array stays what it is, instead of becoming a call to the pool
    return tirx.AllocBuffer(alloc.buffer, {"disable_lower_builtin": tirx.const(1, "int32")})


def _is_small_local(buffer: tirx.Buffer) -> bool:
    if buffer.scope() != "local" or not all(isinstance(size, tirx.IntImm) for size in buffer.shape):
        return False
    dtype = tvm.DataType(str(buffer.dtype))
    return math.prod(int(size) for size in buffer.shape) * dtype.lanes * dtype.bits // 8 <= _BYTES
