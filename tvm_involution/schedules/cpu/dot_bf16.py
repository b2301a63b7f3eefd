# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="valid-type"
"""AVX512_BF16's dot product as a tensor intrinsic: 16 sums of two products each, twice the rate of float32.

TVM 0.27 stores bfloat16 as 16-bit integers before LLVM sees it, and LLVM's intrinsic takes bfloat, so the call goes
through a function in LLVM's own language, which is inlined.
"""

from __future__ import annotations

import tvm
from tvm import s_tir
from tvm.script import tirx as T

INTRINSIC = "tvm_involution.dot_bf16"
SUMS, PAIR = 16, 2

LLVM_FUNCTION = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @tvm_involution_dot_bf16(<16 x float> %sums, <16 x i32> %value, <16 x i32> %weight) {
  %a = bitcast <16 x i32> %value to <32 x bfloat>
  %b = bitcast <16 x i32> %weight to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}
"""
"""for the annotation `pragma_import_llvm` of a loop around the intrinsic"""


def has_dot_bf16(target: tvm.target.Target) -> bool:
    """Return whether the CPU has the instruction."""
    if target.kind.name != "llvm":
        return False
    with target:
        return bool(tvm.target.codegen.target_has_features("avx512bf16"))


@T.prim_func(s_tir=True)
def _description(
    value: T.Buffer((2,), "bfloat16", offset_factor=1),
    weight: T.Buffer((16, 2), "bfloat16", offset_factor=1),
    sums: T.Buffer((16,), "float32", offset_factor=1, scope="local"),
) -> None:
    with T.sblock("root"):
        T.reads(sums[0:16], value[0:2], weight[0:16, 0:2])
        T.writes(sums[0:16])
        for i in T.serial(0, 16):
            for k in T.serial(0, 2):
                with T.sblock("update"):
                    vi, vk = T.axis.remap("SR", [i, k])
                    sums[vi] = sums[vi] + T.cast(value[vk], "float32") * T.cast(weight[vi, vk], "float32")


@T.prim_func(s_tir=True)
def _implementation(
    value: T.Buffer((2,), "bfloat16", offset_factor=1),
    weight: T.Buffer((16, 2), "bfloat16", offset_factor=1),
    sums: T.Buffer((16,), "float32", offset_factor=1, scope="local"),
) -> None:
    with T.sblock("root"):
        T.reads(sums[0:16], value[0:2], weight[0:16, 0:2])
        T.writes(sums[0:16])
        # TVM makes float32 of the bfloat16 buffers inside a program, but for those whose address is taken
        T.evaluate(T.isnullptr(value.data))
        sums[T.ramp(T.int32(0), 1, 16)] = T.call_pure_extern(
            "float32x16",
            "tvm_involution_dot_bf16",
            sums.vload([0], "float32x16"),
            T.broadcast(T.reinterpret("int32", value.vload([0], "bfloat16x2")), 16),
            T.reinterpret("int32x16", weight.vload([0, 0], "bfloat16x32")),
        )


s_tir.TensorIntrin.register(INTRINSIC, _description, _implementation)
