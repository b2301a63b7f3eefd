# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="valid-type"
"""Dot products of bytes as tensor intrinsics, exact in int32: each sum gains four products of bytes.

Four bytes, the same for all sums, are multiplied by four signed ones of a packed weight for each sum:

- `vpdpbusd` of AVX512_VNNI (16 sums) and AVX_VNNI (8). The four bytes are broadcast by a load of their own: in the
  instruction itself memory can only be the signed side. On Zen 5 that costs nothing, 14 pixels x 2 vectors of sums
  reach 1,060 of 1,070 GOP/s of a core.
- `vpmaddubsw` and `vpmaddwd` where there is none (AVX2: 8 sums, AVX512BW: 16). The former adds the products of two
  neighbours in 16 bits and cuts off what is more, so it is for weights of which no two neighbours can reach that:
  `fits_pairs`. Quantization makes such weights (`quantization/ranges.py`). Others are stored in 16 bits, two beside
  each other, and `vpmaddwd` alone multiplies them by widened bytes.
- `usdot` of AArch64's i8mm, `sdot` of its dotprod (4 sums), which takes signed bytes on both sides: `wants_signed`.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import tvm
from tvm import s_tir
from tvm.script import tirx as T

from ...cpu_features import has_feature
from .dot_product import DotProduct

VALUES = 4
"""bytes of a dot product"""
LARGEST_PAIR = 128
"""of two neighbours' weights, the sum of the positive ones, or the negative ones: 255 times as much fits 16 bits"""

_VPDPBUSD = """
declare <{sums} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{sums} x i32>, <{bytes} x i8>, <{bytes} x i8>)

define <{sums} x i32> @{name}(<{sums} x i32> %sums, <{sums} x i32> %value, <{sums} x i32> %weight) {{
  %a = bitcast <{sums} x i32> %value to <{bytes} x i8>
  %b = bitcast <{sums} x i32> %weight to <{bytes} x i8>
  %r = call <{sums} x i32> @llvm.x86.avx512.vpdpbusd.{bits}(<{sums} x i32> %sums, <{bytes} x i8> %a, <{bytes} x i8> %b)
  ret <{sums} x i32> %r
}}
"""
_VPMADDUBSW = """
declare <{pairs} x i16> @llvm.x86.{add_bytes}(<{bytes} x i8>, <{bytes} x i8>)
declare <{sums} x i32> @llvm.x86.{add_pairs}(<{pairs} x i16>, <{pairs} x i16>)

define <{sums} x i32> @{name}(<{sums} x i32> %sums, <{sums} x i32> %value, <{sums} x i32> %weight) {{
  %a = bitcast <{sums} x i32> %value to <{bytes} x i8>
  %b = bitcast <{sums} x i32> %weight to <{bytes} x i8>
  %pairs = call <{pairs} x i16> @llvm.x86.{add_bytes}(<{bytes} x i8> %a, <{bytes} x i8> %b)
  %four = call <{sums} x i32> @llvm.x86.{add_pairs}(<{pairs} x i16> %pairs, <{pairs} x i16> splat (i16 1))
  %r = add <{sums} x i32> %sums, %four
  ret <{sums} x i32> %r
}}
"""
_VPMADDWD = """
declare <{sums} x i32> @llvm.x86.{add_pairs}(<{pairs} x i16>, <{pairs} x i16>)

define <{sums} x i32> @{name}(<{sums} x i32> %sums, <{sums} x i16> %value, <{sums} x i32> %weight) {{
  %narrow = bitcast <{sums} x i16> %value to <{pairs} x i8>
  %a = zext <{pairs} x i8> %narrow to <{pairs} x i16>
  %b = bitcast <{sums} x i32> %weight to <{pairs} x i16>
  %two = call <{sums} x i32> @llvm.x86.{add_pairs}(<{pairs} x i16> %a, <{pairs} x i16> %b)
  %r = add <{sums} x i32> %sums, %two
  ret <{sums} x i32> %r
}}
"""
_AARCH64 = """
declare <4 x i32> @llvm.aarch64.neon.{dot}.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)

define <4 x i32> @{name}(<4 x i32> %sums, <4 x i32> %value, <4 x i32> %weight) {{
  %a = bitcast <4 x i32> %value to <16 x i8>
  %b = bitcast <4 x i32> %weight to <16 x i8>
  %r = call <4 x i32> @llvm.aarch64.neon.{dot}.v4i32.v16i8(<4 x i32> %sums, <16 x i8> %a, <16 x i8> %b)
  ret <4 x i32> %r
}}
"""


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One of a CPU."""

    suffix: str
    sums: int
    text: str
    words: tuple[tuple[str, str], ...] = ()
    """what stands in the text for which name, beside sizes"""
    pairs: bool = False
    """whether weights must fit pairs"""
    signed: bool = False
    """whether the broadcast bytes have a sign"""


_MADD_256 = (("add_bytes", "avx2.pmadd.ub.sw"), ("add_pairs", "avx2.pmadd.wd"))
_MADD_512 = (("add_bytes", "avx512.pmaddubs.w.512"), ("add_pairs", "avx512.pmaddw.d.512"))


# by LLVM's name of what a CPU must have, the best first
_INSTRUCTIONS = {
    "avx512vnni": _Instruction("", 16, _VPDPBUSD),
    "avx512bw": _Instruction("_avx512bw", 16, _VPMADDUBSW, _MADD_512, pairs=True),
    "avxvnni": _Instruction("_avxvnni", 8, _VPDPBUSD),
    "avx2": _Instruction("_avx2", 8, _VPMADDUBSW, _MADD_256, pairs=True),
    "i8mm": _Instruction("_i8mm", 4, _AARCH64, (("dot", "usdot"),)),
    "dotprod": _Instruction("_dotprod", 4, _AARCH64, (("dot", "sdot"),), signed=True),
}


def _instruction(target: tvm.target.Target) -> _Instruction | None:
    """Return the CPU's instruction for four bytes; None where there is none."""
    return next((found for feature, found in _INSTRUCTIONS.items() if has_feature(target, feature)), None)


def has_dot_int8(target: tvm.target.Target) -> bool:
    """Return whether the CPU has such an instruction."""
    return _instruction(target) is not None


def wants_pairs(target: tvm.target.Target) -> bool:
    """Return whether the CPU multiplies faster by weights that `fits_pairs` accepts."""
    instruction = _instruction(target)
    return instruction is not None and instruction.pairs


def wants_signed(target: tvm.target.Target) -> bool:
    """Return whether the CPU's instruction takes bytes with a sign where others take bytes without."""
    instruction = _instruction(target)
    return instruction is not None and instruction.signed


def fits_pairs(weight: np.ndarray) -> bool:
    """Return whether 255 times two neighbouring input channels of a weight (O, I, ...) always fits 16 bits."""
    wide = weight.astype(np.int16)
    wide = np.pad(wide, ((0, 0), (0, wide.shape[1] % 2), *[(0, 0)] * (wide.ndim - 2)))
    sums = (np.maximum(part[:, ::2], 0) + np.maximum(part[:, 1::2], 0) for part in (wide, -wide))
    return all(int(one.max()) <= LARGEST_PAIR for one in sums)


def dot_int8(target: tvm.target.Target, dtype: str = "int8") -> DotProduct | None:
    """Return the CPU's dot product by a weight of `dtype`; int16 is for weights that do not fit pairs."""
    instruction = _instruction(target)
    return None if instruction is None else _by(instruction, dtype)


def all_dot_products() -> list[DotProduct]:
    """Return those of all CPUs."""
    found = (_by(instruction, dtype) for instruction in _INSTRUCTIONS.values() for dtype in ("int8", "int16"))
    return [dot for dot in found if dot is not None]


def _by(instruction: _Instruction, dtype: str) -> DotProduct | None:
    if dtype not in ("int8", "int16") or (dtype == "int16" and not instruction.pairs):
        return None
    if dtype == "int16":
        wide = dataclasses.replace(instruction, suffix=f"{instruction.suffix}_wide", text=_VPMADDWD)
        return _dot_product(wide, 2)
    return _dot_product(instruction, VALUES)


@functools.cache
def _dot_product(instruction: _Instruction, values: int) -> DotProduct:
    name, sums = f"tvm_involution_dot_int8{instruction.suffix}", instruction.sums
    text = instruction.text.format(
        name=name, sums=sums, pairs=2 * sums, bytes=4 * sums, bits=32 * sums, **dict(instruction.words)
    )
    byte, weight = "int8" if instruction.signed else "uint8", "int16" if values == 2 else "int8"
    intrinsic = name.replace("involution_", "involution.", 1)

    def register() -> None:
        _register(intrinsic, name, sums, values, byte, weight)

    return DotProduct(intrinsic, sums, values, text, register)


@functools.cache
def _register(intrinsic: str, function: str, sums: int, values: int, byte: str, weight: str) -> None:
    together = f"int{8 * values}"

    @T.prim_func(s_tir=True)
    def description(a: T.handle, b: T.handle, c: T.handle) -> None:
        value = T.match_buffer(a, (values,), byte, offset_factor=1)
        weights = T.match_buffer(b, (sums, values), weight, offset_factor=1)
        total = T.match_buffer(c, (sums,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(total[0:sums], value[0:values], weights[0:sums, 0:values])
            T.writes(total[0:sums])
            for i in T.serial(0, sums):
                for k in T.serial(0, values):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        total[vi] = total[vi] + T.cast(value[vk], "int32") * T.cast(weights[vi, vk], "int32")

    @T.prim_func(s_tir=True)
    def implementation(a: T.handle, b: T.handle, c: T.handle) -> None:
        value = T.match_buffer(a, (values,), byte, offset_factor=1)
        weights = T.match_buffer(b, (sums, values), weight, offset_factor=1)
        total = T.match_buffer(c, (sums,), "int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(total[0:sums], value[0:values], weights[0:sums, 0:values])
            T.writes(total[0:sums])
            total[T.ramp(T.int32(0), 1, sums)] = T.call_pure_extern(
                f"int32x{sums}",
                function,
                total.vload([0], f"int32x{sums}"),
                T.broadcast(T.reinterpret(together, value.vload([0], f"{byte}x{values}")), sums),
                T.reinterpret(f"int32x{sums}", weights.vload([0, 0], f"{weight}x{sums * values}")),
            )

    s_tir.TensorIntrin.register(intrinsic, description, implementation)
