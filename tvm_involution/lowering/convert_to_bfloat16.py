# SPDX-License-Identifier: Apache-2.0
"""Round vectors of float32 to bfloat16 by the CPU's instruction, where it has one.

TVM 0.27 stores bfloat16 as 16-bit integers and rounds by six operations on integers, in which LLVM recognizes nothing.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm_ffi import structural_equal, structural_map

from ..schedules.cpu.dot_bf16 import has_dot_bf16
from .programs import rewrite_cpu_programs

_LANES = 16
_FUNCTION = "tvm_involution_to_bf16"
# AVX512_BF16's VCVTNEPS2BF16 rounds to nearest even as TVM does, but makes zeros of denormal numbers. The intrinsic has
# a type that TVM's code generator lacks, hence a function in LLVM's own language, which is inlined.
_LLVM_FUNCTION = f"""
declare <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float>)

define <16 x i16> @{_FUNCTION}(<16 x float> %value) {{
  %half = call <16 x bfloat> @llvm.x86.avx512bf16.cvtneps2bf16.512(<16 x float> %value)
  %bits = bitcast <16 x bfloat> %half to <16 x i16>
  ret <16 x i16> %bits
}}
"""


@tvm.transform.module_pass(opt_level=0, name="ConvertToBfloat16")
class ConvertToBfloat16:
    """Rewrite what `BF16StorageLegalize` makes of `Cast("bfloat16x16", value)`."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU that has the instruction rewritten."""
        return rewrite_cpu_programs(mod, _with_instruction)


def _with_instruction(func: tirx.PrimFunc) -> tirx.PrimFunc:
    if not has_dot_bf16(func.attrs["target"]):
        return func
    body = structural_map(func.body, (tirx.Cast, _convert))
    if body.same_as(func.body):
        return func
    return func.with_body(tirx.AttrStmt(tirx.const(0, "int32"), "pragma_import_llvm", _LLVM_FUNCTION, body))


def _convert(cast: tirx.Cast) -> tirx.PrimExpr:
    value = _rounded(cast)
    return cast if value is None else tirx.call_pure_extern(f"uint16x{_LANES}", _FUNCTION, value)


def _rounded(cast: tirx.Cast) -> tirx.PrimExpr | None:
    """Return the float32 value that `cast` rounds, None where it is something else."""
    if str(cast.ty.dtype) != f"uint16x{_LANES}":
        return None
    # shift_right(bits + ..., 16)
    bits = getattr(getattr(cast.value, "a", None), "a", None)
    if not isinstance(bits, tvm.ir.Call) or bits.op.name != "tirx.reinterpret":
        return None
    sixteen, one, below_half = (tirx.const(number, f"uint32x{_LANES}") for number in (16, 1, 0x7FFF))
    nearest_even = (bits + ((bits >> sixteen & one) + below_half)) >> sixteen
    return bits.args[0] if structural_equal(cast.value, nearest_even) else None
