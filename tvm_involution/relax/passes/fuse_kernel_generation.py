# SPDX-License-Identifier: Apache-2.0
"""Make one tensor program of an involution and the span convolution before it, which generates its kernel.

Apart, the kernel is written to memory and read back: with 7x7 taps a group of 16 channels it holds 49/16 times as many
numbers as the feature map. Together, a schedule keeps the kernel of a tile of pixels in cache or shared memory,
and need not round it (section 3.2 of arXiv 2103.06255 has the layer's equations).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import GenericConst
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

from ...schedules import gpu
from ...schedules.cpu import spanned_involution as cpu
from ...schedules.cpu.packed_gemm import packed_values, widest_pack
from ...schedules.window import Window
from ...te import (
    MmaFragments,
    pack_paired_span,
    pack_span_mma,
    paired_spanned_involution2d,
    spanned_involution2d,
    spanned_involution2d_mma,
)
from ..constants import is_number, to_float
from ..conv2d import is_dense_nhwc
from ..operators.involution import OP_NAME
from ..rewrite import update_functions
from ..uses import count_uses
from .pack_weights import packed_weight

# TVM's OpPatternKind: elementwise operations may join behind it
_OUT_ELEMENTWISE_FUSABLE = 4


@tvm.transform.module_pass(opt_level=0, name="FuseKernelGeneration")
class FuseKernelGeneration:
    """Rewrite `involution2d(x, conv2d(hidden, W2) + b)` in NHWC with constant W2 and b, where it pays.

    Args:
        tf32: multiply float32 on tensor cores, which keep 10 bits of its mantissa.
        fuse: whether to fuse wherever a schedule can, or nowhere; where it pays by default.
    """

    def __init__(self, target: tvm.target.Target, tf32: bool = False, fuse: bool | None = None):
        self.target = target
        self.tf32 = tf32
        self.fuse = fuse

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those involutions as calls of fused tensor programs."""
        return update_functions(update_functions(mod, self._fuse), self._fuse_quantized)

    def _fuse(self, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
        x, hidden, weight, bias = wildcard(), wildcard(), is_const(), is_const()
        span = is_op("relax.nn.conv2d")(hidden, weight)
        kernel = is_op("relax.add")(span, bias)
        involution = is_op(OP_NAME)(x, kernel)
        uses = count_uses(func)

        def rewrite(expr, matches):
            conv, call = matches[span], matches[involution]
            apart = any(uses.get(matches[part], 2) != 1 for part in (span, kernel))
            if self.fuse is False or apart or not _is_span(conv, matches[bias]):
                return expr
            window = _window(conv, call)
            fused = self._fused(conv, matches[bias], window)
            if fused is None:
                return expr
            function, constants = fused
            return builder.call_te(
                functools.partial(function, groups=window.groups, **_attributes(call)),
                matches[x],
                conv.args[0],
                *map(relax.const, constants),
                primfunc_name_hint="spanned_involution2d",
                primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
            )

        return rewrite_call(involution, rewrite, func)

    def _fuse_quantized(self, func: relax.Function, builder: relax.BlockBuilder) -> relax.Function:
        """Fuse where pixels and span are quantized (`quantization/quantize.py`), with 0 for zero."""
        pixels, hidden, weight, by, bias, scale = wildcard(), wildcard(), is_const(), is_const(), is_const(), is_const()
        x = is_op("relax.multiply")(is_op("relax.astype")(pixels), scale)
        span = is_op("relax.nn.conv2d")(hidden, weight)
        scaled = is_op("relax.multiply")(is_op("relax.astype")(span), by)
        involution = is_op(OP_NAME)(x, is_op("relax.add")(scaled, bias))

        def rewrite(expr, matches):
            conv, call = matches[span], matches[involution]
            window = dataclasses.replace(_window(conv, call), dtype=str(matches[pixels].ty.dtype))
            channels = all(_is_span(conv, matches[one]) for one in (by, bias))
            if window.dtype != "uint8" or self.fuse is False or not channels or not is_number(matches[scale]):
                return expr
            if not cpu.aggregates_pairs(window, self.target):
                return expr
            taps, lanes = (window.kernel_rows, window.kernel_columns), widest_pack(self.target)
            array = matches[weight].value.numpy()
            values = packed_values(self.target, "int8")
            # what the pixels are multiplied with, their kernels are
            multiplied = [
                to_float(matches[one]).reshape(-1) * float(to_float(matches[scale]).reshape(())) for one in (by, bias)
            ]
            by_packed, bias_packed = (pack_paired_span(array, one, taps, lanes, values)[1] for one in multiplied)
            constants = pack_paired_span(array, multiplied[0], taps, lanes, values)[0], bias_packed
            attributes: dict[str, Any] = {"groups": window.groups, **_attributes(call)}
            return builder.call_te(
                lambda x, hidden, span, bias, by: paired_spanned_involution2d(
                    x, hidden, span, bias, span_scale=by, **attributes
                ),
                matches[pixels],
                conv.args[0],
                *map(relax.const, (*constants, by_packed)),
                primfunc_name_hint="spanned_involution2d",
                primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
            )

        return rewrite_call(involution, rewrite, func)

    def _fused(
        self, span: relax.Call, bias: GenericConst, window: Window
    ) -> tuple[Callable[..., te.Tensor], tuple[np.ndarray, np.ndarray]] | None:
        """Return the expression of both and the span's weight and bias as it takes them; None where they stay apart."""
        hidden, kernel_size = int(span.args[0].ty.shape[-1]), (window.kernel_rows, window.kernel_columns)
        fragments = self._fragments(window, hidden)
        if fragments is None and not (self.fuse or self._pays(window, hidden)):
            return None
        weight, taps = span.args[1].value.numpy(), bias.value.numpy().reshape(-1)
        if fragments is not None:
            function = functools.partial(spanned_involution2d_mma, fragments=fragments)
            return function, pack_span_mma(weight, taps, kernel_size, fragments)
        if cpu.aggregates_pairs(window, self.target):
            return paired_spanned_involution2d, pack_paired_span(weight, taps, kernel_size, widest_pack(self.target))
        inner = None
        if self.target.kind.name == "llvm":
            # the schedule makes whole packs, and the kernel in float32
            inner = "float32"
            empty = -len(taps) % widest_pack(self.target)
            weight = np.pad(weight, ((0, empty), (0, 0), (0, 0), (0, 0)))
            taps = np.pad(taps.astype("float32"), (0, empty))
        packed = packed_weight(self.target, weight, window.dtype), taps.reshape(1, 1, 1, -1)
        return functools.partial(spanned_involution2d, inner_dtype=inner), packed

    def _fragments(self, window: Window, hidden: int) -> MmaFragments | None:
        """Return the fragments of the span on tensor cores; None where it should not be fused there."""
        fragments = gpu.mma_fragments(self.target, window.dtype, self.tf32, hidden)
        if fragments is None:
            return None
        decide = gpu.fusing_works if self.fuse else gpu.fusing_pays
        return fragments if decide(window, hidden, fragments, self.target) else None

    def _pays(self, window: Window, hidden: int) -> bool:
        if self.target.kind.name == "cuda":
            return gpu.fusing_pays_on_cuda_cores(hidden, self.tf32 or window.dtype in ("float16", "bfloat16"))
        return cpu.fusing_pays(window)


_PER_AXIS = ("kernel_size", "stride", "padding", "dilation")


def _attributes(involution: relax.Call) -> dict[str, tuple[int, int]]:
    def pair(name: str) -> tuple[int, int]:
        rows, columns = involution.attrs[name]
        return int(rows), int(columns)

    return {name: pair(name) for name in _PER_AXIS}


def _window(span: relax.Call, involution: relax.Call) -> Window:
    attrs = _attributes(involution)
    batch, *out_size, channels = (int(d) for d in involution.ty.shape.values)
    return Window(
        layout="NHWC",
        batch=batch,
        out_size=tuple(out_size),
        channels=channels,
        groups=int(span.ty.shape[-1]) // math.prod(attrs["kernel_size"]),
        kernel_size=attrs["kernel_size"],
        stride=attrs["stride"],
        dilation=attrs["dilation"],
        dtype=str(involution.ty.dtype),
    )


def _is_span(conv: relax.Call, bias: tvm.ir.GenericConst) -> bool:
    attrs = conv.attrs
    out_channels, _, *window = (int(d) for d in conv.args[1].ty.shape.values)
    plain = all(int(s) == 1 for s in attrs.strides) and not any(int(p) for p in attrs.padding)
    channel_bias = [int(d) for d in bias.ty.shape.values] == [1, 1, 1, out_channels]
    return is_dense_nhwc(conv) and window == [1, 1] and plain and channel_bias
