# SPDX-License-Identifier: Apache-2.0
# mypy: disable-error-code="valid-type"
"""Intel's AMX as tensor intrinsics: tiles of 16 rows of 64 bytes, whose products are those of a packed weight.

An intrinsic makes a tile of sums in memory, up to 16 rows (pixels) by one or two vectors (output channels), of the
products over all input channels and places of a window. `tdpbf16ps` takes pairs of bfloat16 and `tdpbusd` fours of
bytes, as they lie in `te.pack_weight`'s order: a step of the sum is a row of the weight's tile. Tiles are configured
and released in each call, since the operating system saves what is not released at each change of threads.

LLVM's intrinsics name the tiles, so they are in a function in LLVM's own language. A process must ask Linux for the
tiles before it uses them: the first call does, so that a library runs wherever it is loaded.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import tvm
from tvm import s_tir, tirx
from tvm.script import tirx as T

from ...cpu_features import has_feature
from ...runtime.amx_permission import ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA
from ..rule import largest_divisor

ROWS = 16
"""of a tile"""
LANES = 16
"""sums in a row of a tile"""
_KINDS = {"bfloat16": ("amx-bf16", "tdpbf16ps", "float32"), "int8": ("amx-int8", "tdpbusd", "int32")}
INPUTS = {"bfloat16": ("bfloat16", 2), "int8": ("uint8", 4)}
"""by the weight's dtype: that of what it is multiplied by, and how many input channels lie side by side"""
_NAME = re.compile(r"tvm_involution\.amx_(bfloat16|int8)_(\d+)_([12])_(\d+)_(\d+)x(\d+)")
_ZERO = re.compile(r"tvm_involution\.amx_(bfloat16|int8)_(\d+)_([12])_zero")
_VALUE_BYTES = 4

_FUNCTION = """
declare void @llvm.x86.ldtilecfg(ptr)
declare void @llvm.x86.tilerelease()
declare void @llvm.x86.tilezero(i8 immarg)
declare void @llvm.x86.tileloadd64(i8 immarg, ptr, i64)
declare void @llvm.x86.tilestored64(i8 immarg, ptr, i64)
declare void @llvm.x86.{instruction}(i8 immarg, i8 immarg, i8 immarg)

@{name}_shapes = private constant [64 x i8] c"{shapes}"
@{name}_asked = private global i8 0

define void @{name}(ptr %sums, i64 %sums_row, ptr %values, i64 %values_line, i64 %values_row, ptr %weight) {{
  %known = load i8, ptr @{name}_asked
  %first = icmp eq i8 %known, 0
  br i1 %first, label %ask, label %start
ask:
  call i64 asm sideeffect "syscall", "={{rax}},0,{{rdi}},{{rsi}},~{{rcx}},~{{r11}},~{{memory}}"(
    i64 {arch_prctl}, i64 {request}, i64 {tile_data})
  store i8 1, ptr @{name}_asked
  br label %start
start:
  call void @llvm.x86.ldtilecfg(ptr @{name}_shapes)
{load}  br label %step
step:
  %i = phi i64 [0, %start], [%next, %step]
  %weight_at = mul i64 %i, {weight_bytes}
  %chunk = urem i64 %i, {chunks}
  %place = udiv i64 %i, {chunks}
  %column = urem i64 %place, {columns}
  %line = udiv i64 %place, {columns}
  %of_chunk = mul i64 %chunk, {value_bytes}
  %of_column = mul i64 %column, %values_row
  %of_line = mul i64 %line, %values_line
  %in_line = add i64 %of_chunk, %of_column
  %value_at = add i64 %in_line, %of_line
  %value = getelementptr i8, ptr %values, i64 %value_at
  %columns0 = getelementptr i8, ptr %weight, i64 %weight_at
  call void @llvm.x86.tileloadd64(i8 2, ptr %value, i64 %values_row)
{multiply}  %next = add i64 %i, 1
  %more = icmp ult i64 %next, {turns}
  br i1 %more, label %step, label %end
end:
{store}  call void @llvm.x86.tilerelease()
  ret void
}}
"""


def has_amx(target: tvm.target.Target, dtype: str) -> bool:
    """Return whether a CPU has tiles and multiplies weights of `dtype` in them."""
    return dtype in _KINDS and has_feature(target, "amx-tile") and has_feature(target, _KINDS[dtype][0])


@dataclasses.dataclass(frozen=True)
class AmxTile:
    """What an intrinsic multiplies."""

    dtype: str
    """of the weight"""
    rows: int
    """pixels"""
    vectors: int
    """of output channels, 1 or 2"""
    steps: int
    """rows of a packed weight: pairs or fours of input channels"""
    window: tuple[int, int] = (1, 1)

    @property
    def intrinsic(self) -> str:
        """Name of the tensor intrinsic."""
        window = "x".join(map(str, self.window))
        return f"tvm_involution.amx_{self.dtype}_{self.rows}_{self.vectors}_{self.steps}_{window}"

    @property
    def zero(self) -> str:
        """Name of the intrinsic that stands where sums become zero: it does nothing, for they begin in the tiles."""
        return f"tvm_involution.amx_{self.dtype}_{self.rows}_{self.vectors}_zero"

    @classmethod
    def named(cls, intrinsic: str) -> AmxTile | None:
        """Return the tile whose intrinsic is called so, or whose `zero`; None of another intrinsic."""
        if (found := _ZERO.fullmatch(intrinsic)) is not None:
            return cls(found[1], int(found[2]), int(found[3]), 1)
        if (found := _NAME.fullmatch(intrinsic)) is None:
            return None
        rows, vectors, steps, height, width = map(int, found.groups()[1:])
        return cls(found[1], rows, vectors, steps, (height, width))

    @property
    def llvm_function(self) -> str:
        """What it calls, for the annotation `pragma_import_llvm` of a loop around it."""
        chunk = largest_divisor(self.steps, ROWS)
        row_bytes = self.vectors * LANES * _VALUE_BYTES
        load = multiply = store = ""
        for vector in range(self.vectors):
            place = vector * LANES * _VALUE_BYTES
            load += f"  %tile{vector} = getelementptr i8, ptr %sums, i64 {place}\n"
            load += f"  call void @llvm.x86.tilezero(i8 {vector})\n"
            store += f"  call void @llvm.x86.tilestored64(i8 {vector}, ptr %tile{vector}, i64 %sums_row)\n"
            if vector:
                multiply += f"  %columns{vector} = getelementptr i8, ptr %columns0, i64 {place}\n"
            multiply += f"  call void @llvm.x86.tileloadd64(i8 {3 + vector}, ptr %columns{vector}, i64 {row_bytes})\n"
            multiply += f"  call void @llvm.x86.{_KINDS[self.dtype][1]}(i8 {vector}, i8 2, i8 {3 + vector})\n"
        shapes = [(self.rows, 64), (self.rows, 64), (self.rows, chunk * _VALUE_BYTES), (chunk, 64), (chunk, 64)]
        config = bytearray(64)
        config[0] = 1  # the only palette
        for tile, (height, width) in enumerate(shapes):
            config[16 + 2 * tile], config[48 + tile] = width, height
        return _FUNCTION.format(
            name=self._symbol,
            instruction=_KINDS[self.dtype][1],
            shapes="".join(f"\\{byte:02x}" for byte in config),
            load=load,
            multiply=multiply,
            store=store,
            value_bytes=chunk * _VALUE_BYTES,
            weight_bytes=chunk * row_bytes,
            chunks=self.steps // chunk,
            columns=self.window[1],
            turns=math.prod(self.window) * self.steps // chunk,
            arch_prctl=ARCH_PRCTL,
            request=REQUEST_PERMISSION,
            tile_data=TILE_DATA,
        )

    @property
    def _symbol(self) -> str:
        return self.intrinsic.replace(".", "_")

    def _call(
        self,
        sums: tirx.Expr,
        sums_row: tirx.Expr,
        value: tirx.Expr,
        line: tirx.Expr | int,
        row: tirx.Expr,
        weight: tirx.Expr,
    ) -> tirx.Expr:
        """Call `llvm_function` for what begins with these numbers; distances of lines and rows are in numbers."""
        value_bytes = _VALUE_BYTES // INPUTS[self.dtype][1]
        distances = ((sums_row, _VALUE_BYTES), (line, value_bytes), (row, value_bytes))
        of_sums, of_line, of_row = (T.cast(number, "int64") * T.int64(size) for number, size in distances)
        where = [T.address_of(first) for first in (sums, value, weight)]
        return T.call_extern("void", self._symbol, where[0], of_sums, where[1], of_line, of_row, where[2])

    def register(self) -> None:
        """Tell TVM of the intrinsic, when it is first wanted."""
        if s_tir.TensorIntrin.get(self.intrinsic, allow_missing=True) is None:
            make = _products if self.window == (1, 1) else _windows
            s_tir.TensorIntrin.register(self.intrinsic, *make(self, self._call))
        if s_tir.TensorIntrin.get(self.zero, allow_missing=True) is None:
            s_tir.TensorIntrin.register(self.zero, *_nothing(self))


def _nothing(tile: AmxTile) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Return description and implementation of sums that become zero in the tiles alone."""
    rows, lanes, sum_dtype = tile.rows, tile.vectors * LANES, _KINDS[tile.dtype][2]

    @T.prim_func(s_tir=True)
    def description(s: T.handle) -> None:
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads()
            T.writes(sums[0:rows, 0:lanes])
            for i, j in T.grid(rows, lanes):
                with T.sblock("zero"):
                    vi, vj = T.axis.remap("SS", [i, j])
                    sums[vi, vj] = T.cast(0, sum_dtype)

    @T.prim_func(s_tir=True)
    def implementation(s: T.handle) -> None:
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads()
            T.writes(sums[0:rows, 0:lanes])
            T.evaluate(0)

    return description, implementation


def _products(tile: AmxTile, call: Callable[..., tirx.Expr]) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Return description and implementation for single places: of rows of a matrix."""
    rows, lanes, steps, dtype = tile.rows, tile.vectors * LANES, tile.steps, tile.dtype
    sum_dtype, (x_dtype, values) = _KINDS[dtype][2], INPUTS[dtype]

    @T.prim_func(s_tir=True)
    def description(x: T.handle, w: T.handle, s: T.handle) -> None:
        value = T.match_buffer(x, (rows, steps * values), x_dtype, offset_factor=1)
        weight = T.match_buffer(w, (steps, lanes, values), dtype, offset_factor=1)
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(sums[0:rows, 0:lanes], value[0:rows, 0 : steps * values], weight[0:steps, 0:lanes, 0:values])
            T.writes(sums[0:rows, 0:lanes])
            for i, j, k, v in T.grid(rows, lanes, steps, values):
                with T.sblock("update"):
                    vi, vj, vk, vv = T.axis.remap("SSRR", [i, j, k, v])
                    sums[vi, vj] = sums[vi, vj] + T.cast(value[vi, vk * values + vv], sum_dtype) * T.cast(
                        weight[vk, vj, vv], sum_dtype
                    )

    @T.prim_func(s_tir=True)
    def implementation(x: T.handle, w: T.handle, s: T.handle) -> None:
        row, sums_row = T.int32(), T.int32()
        value = T.match_buffer(x, (rows, steps * values), x_dtype, offset_factor=1, strides=[row, 1])
        weight = T.match_buffer(w, (steps, lanes, values), dtype, offset_factor=1)
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local", strides=[sums_row, 1])
        with T.sblock("root"):
            T.reads(sums[0:rows, 0:lanes], value[0:rows, 0 : steps * values], weight[0:steps, 0:lanes, 0:values])
            T.writes(sums[0:rows, 0:lanes])
            # TVM makes float32 of the bfloat16 buffers inside a program, but for those whose address is taken
            T.evaluate(T.isnullptr(value.data))
            T.evaluate(call(sums[0, 0], sums_row, value[0, 0], 0, row, weight[0, 0, 0]))

    return description, implementation


def _windows(tile: AmxTile, call: Callable[..., tirx.Expr]) -> tuple[tirx.PrimFunc, tirx.PrimFunc]:
    """Return description and implementation for the windows of neighbouring pixels."""
    rows, lanes, steps, dtype = tile.rows, tile.vectors * LANES, tile.steps, tile.dtype
    sum_dtype, (x_dtype, values) = _KINDS[dtype][2], INPUTS[dtype]
    height, width = tile.window
    seen = rows + width - 1

    @T.prim_func(s_tir=True)
    def description(x: T.handle, w: T.handle, s: T.handle) -> None:
        value = T.match_buffer(x, (height, seen, steps * values), x_dtype, offset_factor=1)
        weight = T.match_buffer(w, (height, width, steps, lanes, values), dtype, offset_factor=1)
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(
                sums[0:rows, 0:lanes],
                value[0:height, 0:seen, 0 : steps * values],
                weight[0:height, 0:width, 0:steps, 0:lanes, 0:values],
            )
            T.writes(sums[0:rows, 0:lanes])
            for i, j, y, x_, k, v in T.grid(rows, lanes, height, width, steps, values):
                with T.sblock("update"):
                    vi, vj, vy, vx, vk, vv = T.axis.remap("SSRRRR", [i, j, y, x_, k, v])
                    sums[vi, vj] = sums[vi, vj] + T.cast(value[vy, vi + vx, vk * values + vv], sum_dtype) * T.cast(
                        weight[vy, vx, vk, vj, vv], sum_dtype
                    )

    @T.prim_func(s_tir=True)
    def implementation(x: T.handle, w: T.handle, s: T.handle) -> None:
        line, row, sums_row = T.int32(), T.int32(), T.int32()
        value = T.match_buffer(x, (height, seen, steps * values), x_dtype, offset_factor=1, strides=[line, row, 1])
        weight = T.match_buffer(w, (height, width, steps, lanes, values), dtype, offset_factor=1)
        sums = T.match_buffer(s, (rows, lanes), sum_dtype, offset_factor=1, scope="local", strides=[sums_row, 1])
        with T.sblock("root"):
            T.reads(
                sums[0:rows, 0:lanes],
                value[0:height, 0:seen, 0 : steps * values],
                weight[0:height, 0:width, 0:steps, 0:lanes, 0:values],
            )
            T.writes(sums[0:rows, 0:lanes])
            # TVM makes float32 of the bfloat16 buffers inside a program, but for those whose address is taken
            T.evaluate(T.isnullptr(value.data))
            T.evaluate(call(sums[0, 0], sums_row, value[0, 0, 0], line, row, weight[0, 0, 0, 0, 0]))

    return description, implementation
