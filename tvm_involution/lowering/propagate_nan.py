# SPDX-License-Identifier: Apache-2.0
"""Let NaN survive maxima, minima and `!=` of floating-point numbers, as in torch.

TVM 0.27 makes `a > b ? a : b` of a maximum, which is `b` where one of the two is NaN: ReLU makes 0 of it. Its `!=` is
false for NaN on CPUs.

A byte cannot be NaN, and LLVM's own conversion of it is undefined: on CPUs it becomes 0, as of torch's
`quantize_per_tensor`. Where the number is clipped at 0 before, as what networks in int8 compute is, that costs nothing.
"""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable

import tvm
from tvm import tirx
from tvm.backend.cuda.op import cuda_func_call
from tvm_ffi import structural_equal, structural_map, structural_walk

from ..target import compute_capability

_EXTREMA = (tirx.Max, tirx.Min)

_CUDA_TYPES = {"float16": "half", "bfloat16": "nv_bfloat16", "float32": "float", "float64": "double"}
# a template, since TVM has vectors of some types in those of others: eight numbers of 16 bits are a uint4
_CUDA_FUNCTION = """
template <typename Vector>
__forceinline__ __device__ Vector {name}(Vector a, Vector b) {{
  {type} *x = reinterpret_cast<{type}*>(&a), *y = reinterpret_cast<{type}*>(&b);
  #pragma unroll
  for (int lane = 0; lane < {lanes}; ++lane) {combine}
  return a;
}}
"""


@tvm.transform.module_pass(opt_level=0, name="PropagateNan")
class PropagateNan:
    """Rewrite them in lowered programs.

    The last pass: what reduces across threads is recognized by its maximum, and TVM simplifies what this one writes.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` rewritten for its target."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc):
                mod[name] = func.with_body(_rewrite(func.body, func.attrs["target"]))
        return mod


def _rewrite(body: tirx.Stmt, target: tvm.target.Target) -> tirx.Stmt:
    body = _start_at_infinity(body)
    if target.kind.name == "cuda":
        on_cuda = functools.partial(_on_cuda, native=compute_capability(target) >= 80)
        return structural_map(body, [(_EXTREMA, on_cuda), (tirx.FloatImm, _as_cuda_has_it)])
    body = structural_map(body, (tirx.Cast, _make_zero))
    return structural_map(body, [(_EXTREMA, _by_selection if _is_x86(target) else _by_intrinsic), (tirx.NE, _unequal)])


def _start_at_infinity(body: tirx.Stmt) -> tirx.Stmt:
    """Let maxima over several elements begin at -inf and not at the least finite number, minima likewise."""
    kinds: dict[tirx.Var, type] = {}

    def collect(store: tirx.BufferStore) -> None:
        value = store.value
        if (
            isinstance(value, _EXTREMA)
            and _is_float(value)
            and any(_reads(x, store.buffer) for x in (value.a, value.b))
        ):
            kinds[store.buffer] = type(value)

    def replace(store: tirx.BufferStore) -> tirx.BufferStore:
        kind = kinds.get(store.buffer)
        if kind is None:
            return store
        dtype = str(store.buffer.dtype).partition("x")[0]  # a buffer may hold vectors
        finite = tirx.min_value(dtype) if kind is tirx.Max else tirx.max_value(dtype)
        if not structural_equal(_scalar(store.value), finite):
            return store
        infinite = tirx.const(-math.inf if kind is tirx.Max else math.inf, dtype)
        value = tirx.Broadcast(infinite, store.value.lanes) if isinstance(store.value, tirx.Broadcast) else infinite
        return tirx.BufferStore(store.buffer, value, store.indices)

    structural_walk(body, (tirx.BufferStore, collect))
    return structural_map(body, (tirx.BufferStore, replace)) if kinds else body


def _by_selection(extremum: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return selections that on x86 become `maxps` and `minps`, whose result is the second operand if one is NaN.

    Where an operand is known to be a number it is the first; otherwise a comparison and a blend keep the first's NaN.
    """
    if not _is_float(extremum):
        return extremum
    first, second = extremum.a, extremum.b
    if _is_number(second):
        first, second = second, first
    if _is_number(first):
        return _named([second], lambda x: _select(extremum, first, x))
    return _named([first, second], lambda x, y: tirx.Select(tirx.EQ(x, x), _select(extremum, x, y), x))


def _by_intrinsic(extremum: tirx.PrimExpr) -> tirx.PrimExpr:
    """Return IEEE 754's maximum, an instruction on AArch64 (`fmax`), though not for vectors of float16 everywhere."""
    if not _is_float(extremum) or "float16" in str(extremum.ty.dtype):
        return _by_selection(extremum)
    name = "llvm.maximum" if isinstance(extremum, tirx.Max) else "llvm.minimum"
    return tirx.call_llvm_pure_intrin(extremum.ty, name, extremum.a, extremum.b)


def _make_zero(cast: tirx.Cast) -> tirx.PrimExpr:
    """Return a cast to bytes in which NaN becomes 0."""
    value, moved = cast.value, None
    if not _is_float(value) or str(cast.ty.dtype).partition("x")[0] not in ("int8", "uint8"):
        return cast
    if isinstance(value, tirx.Add) and _is_number(value.b):
        value, moved = value.a, value.b
    if isinstance(value, tirx.Max) and _is_number(value.b) and _scalar(value.b).value == 0:
        zero = value.b
        number = _named([value.a], lambda x: tirx.Select(tirx.GT(x, zero), x, zero))
        return tirx.Cast(cast.ty, number if moved is None else number + moved)
    zero = tirx.const(0, _scalar_type(cast.value))
    if (lanes := tvm.DataType(str(cast.value.ty.dtype)).lanes) > 1:
        zero = tirx.Broadcast(zero, lanes)
    return tirx.Cast(cast.ty, _named([cast.value], lambda x: tirx.Select(tirx.EQ(x, x), x, zero)))


def _unequal(comparison: tirx.NE) -> tirx.PrimExpr:
    return tirx.Not(tirx.EQ(comparison.a, comparison.b)) if _is_float(comparison.a) else comparison


def _on_cuda(extremum: tirx.PrimExpr, native: bool) -> tirx.PrimExpr:
    """Return a call of a function that takes the type's vectors apart.

    Args:
        native: whether the GPU has instructions that keep NaN, as from sm_80 on.
    """
    if not _is_float(extremum):
        return extremum
    kind = "max" if isinstance(extremum, tirx.Max) else "min"
    dtype = tvm.DataType(str(extremum.ty.dtype))
    scalar = str(extremum.ty.dtype).partition("x")[0]
    if scalar == "float32" and native:
        combine = f'asm("{kind}.NaN.f32 %0, %1, %2;" : "=f"(x[lane]) : "f"(x[lane]), "f"(y[lane]));'
    elif scalar in ("float16", "bfloat16") and native:
        combine = f"x[lane] = __h{kind}_nan(x[lane], y[lane]);"
    else:
        sign = ">" if kind == "max" else "<"
        combine = f"x[lane] = x[lane] {sign} y[lane] || x[lane] != x[lane] ? x[lane] : y[lane];"
    name, c_type = f"tvm_involution_{kind}_{extremum.ty.dtype}", _CUDA_TYPES[scalar]
    source = _CUDA_FUNCTION.format(name=name, type=c_type, lanes=dtype.lanes, combine=combine)
    return cuda_func_call(name, extremum.a, extremum.b, source_code=source, return_type=extremum.ty)


def _as_cuda_has_it(constant: tirx.FloatImm) -> tirx.PrimExpr:
    """Return infinities and NaN of bfloat16 by way of float32; TVM writes "inff"."""
    if math.isfinite(constant.value) or "bfloat16" not in str(constant.ty.dtype):
        return constant
    return tirx.Cast(constant.ty, tirx.const(constant.value, "float32"))


def _select(extremum: tirx.PrimExpr, first: tirx.PrimExpr, second: tirx.PrimExpr) -> tirx.PrimExpr:
    compare = tirx.GT if isinstance(extremum, tirx.Max) else tirx.LT
    return tirx.Select(compare(first, second), first, second)


def _reads(expr: tirx.PrimExpr, buffer: tirx.Var) -> bool:
    return isinstance(expr, tvm.ir.TensorLoad) and expr.source.same_as(buffer)


def _scalar(expr: tirx.PrimExpr) -> tirx.PrimExpr:
    return expr.value if isinstance(expr, tirx.Broadcast) else expr


def _named(values: list[tirx.PrimExpr], use: Callable[..., tirx.PrimExpr]) -> tirx.PrimExpr:
    """Return what `use` makes of `values`, each of which is computed once."""
    names = [tirx.Var("value", value.ty) for value in values]
    result = use(*names)
    for name, value in zip(names, values, strict=True):
        result = tirx.Let(name, value, result)
    return result


def _scalar_type(expr: tirx.PrimExpr) -> str:
    return str(expr.ty.dtype).partition("x")[0]


def _is_number(expr: tirx.PrimExpr) -> bool:
    """Return whether the value is known not to be NaN: a constant."""
    value = _scalar(expr)
    return isinstance(value, tirx.FloatImm) and not math.isnan(value.value)


def _is_float(expr: tirx.PrimExpr) -> bool:
    return "float" in str(expr.ty.dtype)


def _is_x86(target: tvm.target.Target) -> bool:
    return str(target.attrs.get("mtriple") or platform.machine()).startswith(("x86_64", "i686"))
