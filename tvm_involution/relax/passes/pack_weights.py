# SPDX-License-Identifier: Apache-2.0
"""Lower NHWC convolutions and linear layers with constant weights to packed matrix products.

The weight is packed here, once, at compile time, in the order in which the schedule walks it; what has no constant
weight keeps TVM's own lowering, and on GPUs what has groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax, te
from tvm.ir import GenericConst

from ...schedules.cpu import depthwise_convolution, dot_int8, packed_gemm
from ...schedules.cpu.amx import has_amx
from ...schedules.cpu.packed_gemm import pack_width, packed_values
from ...schedules.gpu import mma_fragments
from ...schedules.gpu.cuda_core_gemm import pack_lanes
from ...schedules.gpu.tensor_core_gemm import pack_tiles, takes_product
from ...target import vector_bytes
from ...te.convolution import conv2d_packed, matmul_packed, pack_grouped_weight, pack_weight
from ...te.depthwise_convolution import depthwise_conv2d, pack_depthwise_weight
from ...te.gemm_convolution import CHUNK, conv2d_gemm, pack_weight_gemm
from ...te.im2col import Windows, conv2d_windows, matrix_windows
from ...te.matmul import matmul_computed
from ...te.mma_convolution import conv2d_mma, pack_weight_mma
from ..conv2d import is_nhwc, is_static
from ..rewrite import Graph, rewrite_calls

# rows from which packing what they are multiplied by pays
_ROWS = 4
# of TVM's kinds of operators: elementwise ones fuse behind it
_OUT_ELEMENTWISE_FUSABLE = 4


def packed_weight(target: tvm.target.Target, weight: np.ndarray, dtype: str) -> np.ndarray:
    """Return the weight (O, I, *taps) in the order, and the integers, in which schedules for `target` walk it."""
    if dtype == "int8" and dot_int8.wants_pairs(target) and not dot_int8.fits_pairs(weight):
        weight, dtype = weight.astype(np.int16), "int16"
    return pack_weight(weight, pack_width(target, weight.shape[0]), packed_values(target, dtype))


def _sums_of_bytes(weight: GenericConst) -> str | None:
    return "int32" if str(weight.ty.dtype) == "int8" else None


@tvm.transform.module_pass(opt_level=0, name="PackWeights")
class PackWeights:
    """Legalize `relax.nn.conv2d` (NHWC/OIHW), `conv3d` (NDHWC/OIDHW) and `relax.matmul` by constants for `target`.

    Args:
        tf32: multiply float32 on tensor cores, which keep 10 bits of its mantissa.
    """

    def __init__(self, target: tvm.target.Target, tf32: bool = False):
        self.target = target
        self.tf32 = tf32

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those operators as calls of tensor programs."""
        rewrites = {
            "relax.nn.conv1d": self._conv1d,
            "relax.nn.conv2d": self._convolution,
            "relax.nn.conv3d": self._convolution,
            "relax.matmul": self._matmul,
        }
        return rewrite_calls(mod, rewrites)

    def _convolution(self, call: relax.Call, graph: Graph) -> relax.Expr:
        weight, attrs = call.args[1], call.attrs
        if not isinstance(weight, GenericConst) or not is_nhwc(call):
            return call
        stride, padding, dilation = (
            tuple(int(value) for value in values) for values in (attrs.strides, attrs.padding, attrs.dilation)
        )
        array = weight.value.numpy()
        kernel_size, hint = array.shape[2:], call.op.name.removeprefix("relax.nn.")
        if int(attrs.groups) > 1:
            return self._grouped(call, graph, array, (stride, padding, dilation)) if hint == "conv2d" else call
        if self.target.kind.name == "cuda":
            on_gpu = self._product(
                call, graph, array, lambda x: conv2d_windows(x, kernel_size, stride, padding, dilation), hint
            )
            if on_gpu is not None:
                return on_gpu
        x = call.args[0]
        if has_amx(self.target, str(weight.ty.dtype)) and set(kernel_size) == {1} and not any(padding):
            x, stride = self._picked(x, stride, graph), (1,) * len(stride)
        return graph.builder.call_te(
            conv2d_packed,
            x,
            relax.const(packed_weight(self.target, array, str(weight.ty.dtype))),
            out_channels=array.shape[0],
            stride=stride,
            padding=padding,
            dilation=dilation,
            out_dtype=_sums_of_bytes(weight),
            kernel_size=kernel_size,
            strip=self._strip(call) if hint == "conv2d" else 1,
            primfunc_name_hint=hint,
        )

    def _picked(self, x: relax.Expr, stride: tuple[int, ...], graph: Graph) -> relax.Expr:
        """Return the pixels of x that a step of `stride` reaches, beside each other, as tiles take them."""
        axes = [axis for axis, step in enumerate(stride, 1) if step > 1]
        if not axes:
            return x
        size = x.ty.shape.values
        ends, steps = [size[axis] for axis in axes], [stride[axis - 1] for axis in axes]
        return graph.emit(relax.op.strided_slice(x, axes, [0] * len(axes), ends, steps))

    def _strip(self, call: relax.Call) -> int:
        """Return to a multiple of what to fill up rows of a convolution that copies its input anyway, for padding."""
        padded = any(int(p) for p in call.attrs.padding)
        return packed_gemm.strip_width(int(call.ty.shape[2]), self.target) if padded and is_static(call) else 1

    def _conv1d(self, call: relax.Call, graph: Graph) -> relax.Expr:
        """Return a convolution of one row; in NCW, which TVM has, where the weight is no constant."""
        x, weight, attrs, emit = call.args[0], call.args[1], call.attrs, graph.emit
        if attrs.data_layout != "NWC":
            return call
        if not isinstance(weight, GenericConst) or not is_static(call):
            shared = {"strides": attrs.strides, "padding": attrs.padding, "dilation": attrs.dilation}
            x = emit(relax.op.permute_dims(x, [0, 2, 1]))
            sums = relax.op.nn.conv1d(x, weight, groups=int(attrs.groups), out_dtype=attrs.out_dtype, **shared)
            return relax.op.permute_dims(emit(sums), [0, 2, 1])
        n, length, channels = (int(d) for d in x.ty.shape)
        before, after = (int(p) for p in attrs.padding)
        row = emit(relax.op.reshape(x, (n, 1, length, channels)))
        sums = relax.op.nn.conv2d(
            row,
            relax.const(weight.value.numpy()[:, :, None], str(weight.ty.dtype)),
            strides=(1, int(attrs.strides[0])),
            padding=(0, before, 0, after),
            dilation=(1, int(attrs.dilation[0])),
            groups=int(attrs.groups),
            data_layout="NHWC",
            out_dtype=attrs.out_dtype,
        )
        return relax.op.reshape(emit(self._convolution(graph.builder.normalize(sums), graph)), call.ty.shape)

    def _grouped(
        self,
        call: relax.Call,
        graph: Graph,
        weight: np.ndarray,
        window: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    ) -> relax.Expr:
        """Return a convolution with groups, of one channel or of several, on CPUs."""
        if self.target.kind.name != "llvm" or not is_static(call):
            return call
        out_channels, inputs = weight.shape[:2]
        groups, lanes = int(call.attrs.groups), vector_bytes(self.target) // 4
        if out_channels == groups and inputs == 1:
            return graph.builder.call_te(
                depthwise_conv2d,
                call.args[0],
                relax.const(pack_depthwise_weight(weight, lanes)),
                *window,
                strip=depthwise_convolution.strip_width(int(call.ty.shape[2]), self.target),
                primfunc_name_hint="depthwise_conv2d",
            )
        lanes = pack_width(self.target, out_channels // groups)
        return graph.builder.call_te(
            conv2d_packed,
            call.args[0],
            relax.const(pack_grouped_weight(weight, groups, lanes)),
            out_channels,
            *window,
            groups=groups,
            primfunc_name_hint="grouped_conv2d",
        )

    def _matmul(self, call: relax.Call, graph: Graph) -> relax.Expr:
        x, weight = call.args
        if not isinstance(weight, GenericConst):
            return self._computed(call, graph)
        if x.ty.ndim != 2 or weight.ty.ndim != 2:
            return call
        matrix = weight.value.numpy().T[:, :, None, None]  # (O, I, 1, 1), as a convolution's weight
        if self.target.kind.name == "cuda":
            on_gpu = self._product(call, graph, matrix, matrix_windows, "linear")
            if on_gpu is not None:
                return on_gpu
        rows, strip = x.ty.shape.values[0], 1
        if isinstance(rows, tvm.tirx.IntImm):
            strip = packed_gemm.strip_width(int(rows), self.target)
        if strip > 1:
            sums = graph.builder.call_te(
                conv2d_packed,
                graph.emit(relax.op.reshape(x, (1, 1, rows, x.ty.shape.values[1]))),
                relax.const(packed_weight(self.target, matrix, str(weight.ty.dtype))),
                out_channels=matrix.shape[0],
                out_dtype=_sums_of_bytes(weight),
                strip=strip,
                primfunc_name_hint="linear",
            )
            return relax.op.reshape(graph.emit(sums), call.ty.shape)
        return graph.builder.call_te(
            matmul_packed,
            x,
            relax.const(packed_weight(self.target, matrix, str(weight.ty.dtype))),
            out_channels=matrix.shape[0],
            out_dtype=_sums_of_bytes(weight),
            primfunc_name_hint="linear",
        )

    def _computed(self, call: relax.Call, graph: Graph) -> relax.Expr:
        """Return the product of two computed matrices on CPUs, of several rows, in batches of the same size."""
        a, b = call.args
        if self.target.kind.name != "llvm" or not is_static(call) or a.ty.ndim != b.ty.ndim or a.ty.ndim < 2:
            return call
        # scores of half types stay in float32 up to their softmax, for which `WidenHalfTypes` wants operators
        if any(str(one.ty.dtype) not in ("float32", "float64") for one in (a, b, call)) or a.ty.dtype != b.ty.dtype:
            return call
        *batch, rows, _ = (int(d) for d in a.ty.shape)
        if rows < _ROWS or batch != [int(d) for d in b.ty.shape][:-2]:
            return call
        swapped = [*range(len(batch)), len(batch) + 1, len(batch)]
        source = graph.bound(b)
        transposed = (
            isinstance(source, relax.Call)
            and getattr(source.op, "name", "") == "relax.permute_dims"
            and [int(axis) for axis in source.attrs.axes or []] == swapped
        )
        return graph.builder.call_te(
            matmul_computed,
            a,
            source.args[0] if transposed and source is not None else b,
            transposed,
            pack_width(self.target, int(call.ty.shape[-1])),
            packed_gemm.strip_width(rows, self.target),
            primfunc_name_hint="matmul",
            primfunc_attrs={"op_pattern": _OUT_ELEMENTWISE_FUSABLE},
        )

    def _product(
        self, call: relax.Call, graph: Graph, weight: np.ndarray, windows: Callable[[te.Tensor], Windows], hint: str
    ) -> relax.Expr | None:
        """Return the matrix product of all windows, on tensor cores where they take it; None where neither does."""
        pixels = math.prod(int(d) for d in call.ty.shape.values[:-1])
        lower = product_of(self.target, self.tf32, str(call.ty.dtype), pixels, [weight])
        return lower and lower(graph.builder, [call.args[0]], lambda _, x: windows(x), hint)


LowerProduct = Callable[[relax.BlockBuilder, Sequence[relax.Expr], Callable[..., Windows], str], relax.Expr]
"""Given a builder, the inputs, a function from the length of a chunk and the inputs to the windows, and a name."""


def product_of(
    target: tvm.target.Target, tf32: bool, dtype: str, pixels: int, weights: Sequence[np.ndarray]
) -> LowerProduct | None:
    """Return how `target` multiplies the windows of so many output pixels by weights (O, I, *taps), one behind another.

    None for a matrix times a vector: bounds on an axis of one element are lost (TVM 0.27), and it is a stream.
    """
    out_channels, depth = weights[0].shape[0], sum(weight[0].size for weight in weights)
    fragments = mma_fragments(target, dtype, tf32)
    if fragments is not None and takes_product(pixels, out_channels, depth, fragments):
        tiles, own = pack_tiles(pixels, out_channels), fragments
        packed = np.concatenate([pack_weight_mma(weight, own, tiles) for weight in weights], axis=1)

        def on_tensor_cores(builder, inputs, windows, hint):
            return builder.call_te(
                lambda w, *xs: conv2d_mma(windows(own.chunk, *xs), w, out_channels, own, dtype),
                relax.const(packed),
                *inputs,
                primfunc_name_hint=hint,
            )

        return on_tensor_cores
    if pixels == 1 or out_channels == 1:
        return None
    packed = np.concatenate([pack_weight_gemm(weight, pack_lanes(out_channels)) for weight in weights])

    def on_cuda_cores(builder, inputs, windows, hint):
        return builder.call_te(
            lambda w, *xs: conv2d_gemm(windows(CHUNK, *xs), w, out_channels, dtype),
            relax.const(packed),
            *inputs,
            primfunc_name_hint=hint,
        )

    return on_cuda_cores
