# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="valid-type"
"""AVX512_BF16's dot product as tensor intrinsics: 16 sums of two products each, twice the rate of float32.

TVM 0.27 stores bfloat16 as 16-bit integers before LLVM sees it, and LLVM's intrinsic takes bfloat, so the call goes
through a function in LLVM's own language, which is inlined. Both intrinsics multiply a pair of numbers, the same for
all sums, by 16 pairs: `INTRINSIC` by a packed weight, `PIXELS` by what `te.paired_spanned_involution2d` makes of x.
There a pair is used once, and a load that only fills a register takes the place of a product on Zen 4; LLVM 22 does not
fold such a load into the instruction, hence the assembly.
"""

from __future__ import annotations

import functools

import tvm
from tvm import s_tir
from tvm.script import tirx as T

from ...cpu_features import has_feature
from .dot_product import DotProduct

INTRINSIC = "tvm_involution.dot_bf16"
PIXELS = "tvm_involution.dot_bf16_pixels"
SUMS, PAIR = 16, 2

LLVM_FUNCTION = """
declare <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float>, <32 x bfloat>, <32 x bfloat>)

define <16 x float> @tvm_involution_dot_bf16(<16 x float> %sums, <16 x i32> %value, <16 x i32> %weight) {
  %a = bitcast <16 x i32> %value to <32 x bfloat>
  %b = bitcast <16 x i32> %weight to <32 x bfloat>
  %r = call <16 x float> @llvm.x86.avx512bf16.dpbf16ps.512(<16 x float> %sums, <32 x bfloat> %a, <32 x bfloat> %b)
  ret <16 x float> %r
}

define <16 x float> @tvm_involution_dot_bf16_pixels(<16 x float> %sums, ptr %value, <16 x i32> %pixels) {
  %r = call <16 x float> asm "vdpbf16ps $2{1to16}, $3, $0", "=v,0,*m,v"(
    <16 x float> %sums, ptr elementtype(i32) %value, <16 x i32> %pixels) memory(argmem: read) nounwind willreturn
  ret <16 x float> %r
}
"""
"""for the annotation `pragma_import_llvm` of a loop around the intrinsic"""


def has_dot_bf16(target: tvm.target.Target) -> bool:
    """Return whether the CPU has the instruction."""
    return has_feature(target, "avx512bf16")


@functools.cache
def register() -> None:
    """Tell TVM of the intrinsics, when they are first wanted: their text takes a second to read."""

    @T.prim_func(s_tir=True)
    def description(
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
    def implementation(
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

    @T.prim_func(s_tir=True)
    def pixels_description(
        value: T.Buffer((2,), "bfloat16", offset_factor=1),
        pixels: T.Buffer((16,), "uint32", offset_factor=1),
        sums: T.Buffer((16,), "float32", offset_factor=1, scope="local"),
    ) -> None:
        with T.sblock("root"):
            T.reads(sums[0:16], pixels[0:16], value[0:2])
            T.writes(sums[0:16])
            for i in T.serial(0, 16):
                with T.sblock("update"):
                    vi = T.axis.spatial(16, i)
                    sums[vi] = sums[vi] + (
                        T.reinterpret("float32", pixels[vi] << T.uint32(16)) * T.cast(value[0], "float32")
                        + T.reinterpret("float32", pixels[vi] & T.uint32(0xFFFF0000)) * T.cast(value[1], "float32")
                    )

    @T.prim_func(s_tir=True)
    def pixels_implementation(
        value: T.Buffer((2,), "bfloat16", offset_factor=1),
        pixels: T.Buffer((16,), "uint32", offset_factor=1),
        sums: T.Buffer((16,), "float32", offset_factor=1, scope="local"),
    ) -> None:
        with T.sblock("root"):
            T.reads(sums[0:16], pixels[0:16], value[0:2])
            T.writes(sums[0:16])
            T.evaluate(T.isnullptr(value.data))
            sums[T.ramp(T.int32(0), 1, 16)] = T.call_pure_extern(
                "float32x16",
                "tvm_involution_dot_bf16_pixels",
                sums.vload([0], "float32x16"),
                T.address_of(value[0]),
                T.reinterpret("int32x16", pixels.vload([0], "uint32x16")),
            )

    s_tir.TensorIntrin.register(INTRINSIC, description, implementation)
    s_tir.TensorIntrin.register(PIXELS, pixels_description, pixels_implementation)


DOT_BF16 = DotProduct(INTRINSIC, SUMS, PAIR, LLVM_FUNCTION, register)
