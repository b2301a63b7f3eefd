# SPDX-License-Identifier: Apache-2.0
"""Make one tensor program of an involution and the span convolution before it, which generates its kernel.

Apart, the kernel is written to memory and read back: with 7x7 taps a group of 16 channels it holds 49/16 times as many
numbers as the feature map. Together, a schedule keeps the kernel of a tile of pixels in cache or shared memory,
and need not round it (section 3.2 of arXiv 2103.06255 has the layer's equations).
"""

from __future__ import annotations

import functools
import math

import numpy as np
import tvm
from tvm import relax
from tvm.relax.dpl import is_const, is_op, rewrite_call, wildcard

from ...schedules.cpu.dot_bf16 import has_dot_bf16
from ...schedules.gpu import fusing_pays, fusing_works, mma_fragments
from ...schedules.window import Window
from ...target import CACHE_BYTES
from ...te import (
    MmaFragments,
    pack_paired_span,
    pack_span_mma,
    paired_spanned_involution2d,
    spanned_involution2d,
    spanned_involution2d_mma,
)
from ...te.paired_involution import CHANNELS as PAIRED_CHANNELS
from ..conv2d import is_dense_nhwc
from ..operator import OP_NAME
from ..rewrite import update_functions
from ..uses import count_uses
from .pack_weights import packed_weight, widest_pack

# TVM's OpPatternKind: elementwise operations may join behind it
_OUT_ELEMENTWISE_FUSABLE = 4
# hidden channels up to which a GPU generates the kernel on CUDA cores where it is used
_GPU_HIDDEN, _GPU_HIDDEN_HALF = 64, 8


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
        return update_functions(mod, self._fuse)

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
            fragments = self._fragments(conv, call)
            if fragments is not None:
                return self._on_tensor_cores(builder, call, matches[x], conv, matches[bias], fragments)
            if not (self.fuse or self._pays(conv, call)):
                return expr
            lower = self._in_pairs if self._pairs(conv, call) else self._spanned
            return lower(builder, call, matches[x], conv, matches[bias])

        return rewrite_call(involution, rewrite, func)

    def _fragments(self, span: relax.Call, involution: relax.Call) -> MmaFragments | None:
        """Return the fragments of the span on tensor cores; None where it should not be fused there."""
        hidden = int(span.args[0].ty.shape[-1])
        fragments = mma_fragments(self.target, str(involution.ty.dtype), self.tf32, hidden)
        if fragments is None:
            return None
        decide = fusing_works if self.fuse else fusing_pays
        return fragments if decide(_window(span, involution), hidden, fragments, self.target) else None

    def _on_tensor_cores(self, builder, involution, x, conv, bias, fragments):
        attrs = _attributes(involution)
        weight = conv.args[1].value.numpy()
        packed = pack_span_mma(weight, bias.value.numpy().reshape(-1), attrs["kernel_size"], fragments)
        function = functools.partial(spanned_involution2d_mma, groups=_groups(conv, attrs), fragments=fragments)
        return _call(builder, function, x, conv, map(relax.const, packed), attrs)

    def _pays(self, span: relax.Call, involution: relax.Call) -> bool:
        """Half types on CPUs; float32 only where the second-level cache can't hold the kernel (docs/benchmarks.md).

        On a GPU's CUDA cores where the products take less time than the kernel's way through memory: with few hidden
        channels, fewer in the half types and tf32, whose span alone runs on tensor cores (docs/gpu.md).
        """
        half = str(involution.ty.dtype) in ("float16", "bfloat16")
        if self.target.kind.name == "cuda":
            return int(span.args[0].ty.shape[-1]) <= (_GPU_HIDDEN_HALF if half or self.tf32 else _GPU_HIDDEN)
        elements = math.prod(int(d) for d in span.ty.shape.values)
        return half or elements * 4 > CACHE_BYTES

    def _pairs(self, span: relax.Call, involution: relax.Call) -> bool:
        """Return whether the CPU can aggregate by dot products of bfloat16."""
        window = _window(span, involution)
        neighbours = window.kernel_columns > 1 and window.dilation[1] == 1
        vectors = window.group_channels % PAIRED_CHANNELS == 0
        return window.dtype == "bfloat16" and has_dot_bf16(self.target) and neighbours and vectors

    def _in_pairs(self, builder, involution, x, conv, bias):
        attrs = _attributes(involution)
        weight = conv.args[1].value.numpy()
        lanes = widest_pack(self.target)
        packed = pack_paired_span(weight, bias.value.numpy().reshape(-1), attrs["kernel_size"], lanes)
        function = functools.partial(paired_spanned_involution2d, groups=_groups(conv, attrs))
        return _call(builder, function, x, conv, map(relax.const, packed), attrs)

    def _spanned(self, builder, involution, x, conv, bias):
        attrs = _attributes(involution)
        weight, inner = conv.args[1].value.numpy(), None
        if self.target.kind.name == "llvm":
            # the schedule makes whole packs, and the kernel in float32
            inner = "float32"
            empty = -weight.shape[0] % widest_pack(self.target)
            weight = np.pad(weight, ((0, empty), (0, 0), (0, 0), (0, 0)))
            bias = relax.const(np.pad(bias.value.numpy().astype("float32"), ((0, 0), (0, 0), (0, 0), (0, empty))))
        packed = packed_weight(self.target, weight, str(x.ty.dtype))
        function = functools.partial(spanned_involution2d, groups=_groups(conv, attrs), inner_dtype=inner)
        return _call(builder, function, x, conv, (packed, bias), attrs)


def _call(builder, function, x, conv, span, attrs) -> relax.Call:
    return builder.call_te(
        functools.partial(function, **attrs),
        x,
        conv.args[0],
        *span,
        primfunc_name_hint="spanned_involution2d",
        primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
    )


def _groups(conv: relax.Call, attrs: dict[str, tuple[int, int]]) -> int:
    return int(conv.ty.shape[-1]) // math.prod(attrs["kernel_size"])


_PAIRS = ("kernel_size", "stride", "padding", "dilation")


def _attributes(involution: relax.Call) -> dict[str, tuple[int, int]]:
    def pair(name: str) -> tuple[int, int]:
        rows, columns = involution.attrs[name]
        return int(rows), int(columns)

    return {name: pair(name) for name in _PAIRS}


def _window(span: relax.Call, involution: relax.Call) -> Window:
    attrs = _attributes(involution)
    batch, rows, columns, channels = (int(d) for d in involution.ty.shape.values)
    return Window(
        layout="NHWC",
        batch=batch,
        out_rows=rows,
        out_columns=columns,
        channels=channels,
        groups=_groups(span, attrs),
        kernel_rows=attrs["kernel_size"][0],
        kernel_columns=attrs["kernel_size"][1],
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
