# SPDX-License-Identifier: Apache-2.0
"""A program for every rule for GPUs and every data type that the target has it in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import te, tirx, topi

from tvm_involution.schedules.gpu import mma_fragments
from tvm_involution.schedules.gpu.cuda_core_gemm import pack_lanes
from tvm_involution.schedules.gpu.tensor_core_gemm import pack_tiles
from tvm_involution.te import (
    conv2d_gemm,
    conv2d_mma,
    conv2d_windows,
    involution2d,
    joined_windows,
    local_attention2d,
    matmul_packed,
    matrix_windows,
    nms,
    pack_span_mma,
    pack_weight,
    pack_weight_gemm,
    pack_weight_mma,
    paste_masks,
    roi_align,
    spanned_involution2d,
    spanned_involution2d_mma,
)
from tvm_involution.te.gemm_convolution import CHUNK

DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Program:
    """A tensor program and what is to become of it."""

    name: str
    func: tirx.PrimFunc
    rule: str
    """whose default it gets"""
    tensor_cores: bool = False


def gpu_programs(target: tvm.target.Target) -> Iterator[Program]:
    """Yield the programs for `target`."""
    for dtype in DTYPES:
        for stride in (1, 2) if dtype != "bfloat16" else (2,):  # nvcc is slow; float16 takes the same paths
            yield _involution(f"involution_s{stride}", "Involution", "NHWC", dtype, stride)
            if dtype == "float32" or stride == 2:  # nvcc takes longest for this rule
                yield _involution(f"involution_nchw_s{stride}", "InvolutionNCHW", "NCHW", dtype, stride)
            yield _spanned(dtype, stride)
            if (fragments := mma_fragments(target, dtype, tf32=True)) is not None:
                yield _spanned_mma(dtype, stride, fragments)
        # tiles of large products, and warps that divide the sum of small ones
        for name, shape, out, kernel, tf32 in (
            ("pixels", (8, 28, 28, 128), 256, 1, False),
            ("few_pixels", (1, 7, 7, 512), 64, 1, False),
            ("one_image", (1, 56, 56, 256), 128, 1, False),
            ("window", (2, 15, 13, 24), 40, 3, False),
            ("tf32", (8, 28, 28, 128), 256, 1, True),
        ):
            if not tf32 or dtype == "float32":
                yield _convolution(name, dtype, shape, out, kernel, target, tf32)
        yield _joined(dtype, target)
        yield _one_pixel(dtype, target)
        yield _pool("average", "Reduction", dtype)
        yield _pool("max", "ThreadPerOutput", dtype)
        yield _transposition(dtype)
        yield _picture(dtype)
        yield _attention(dtype)
    softmax = te.placeholder((3, 1000), "float32", "x")
    yield _program("softmax", "float32", [softmax], topi.nn.softmax(softmax), "Reduction")
    yield from _detection()


def _program(name, dtype, inputs, output, rule, tensor_cores=False) -> Program:
    name = f"{name}_{dtype}"
    return Program(name, te.create_prim_func([*inputs, output]).with_attr("global_symbol", name), rule, tensor_cores)


def _placeholders(dtype: str, *shapes: tuple[int, ...]) -> list[te.Tensor]:
    return [te.placeholder(shape, dtype, f"input{i}") for i, shape in enumerate(shapes)]


def _involution(name, rule, layout, dtype, stride) -> Program:
    channels, taps, size = 64, 4 * 49, 14
    out = size // stride
    order = (0, 2, 3, 1) if layout == "NHWC" else (0, 1, 2, 3)
    shapes = [(2, channels, size, size), (2, taps, out, out), (1, channels, 1, 1), (1, channels, 1, 1)]
    inputs = _placeholders(dtype, *(tuple(shape[i] for i in order) for shape in shapes))
    result = involution2d(*inputs[:2], stride, 3, 1, layout, 7)
    return _program(name, dtype, inputs, topi.nn.relu(topi.add(topi.multiply(result, inputs[2]), inputs[3])), rule)


def _spanned(dtype, stride) -> Program:
    channels, taps, size, hidden = 64, 4 * 49, 14, 16
    out = size // stride
    shapes = [(2, size, size, channels), (2, out, out, hidden), (-(-taps // 16), 1, 1, hidden, 16), (1, 1, 1, taps)]
    inputs = _placeholders(dtype, *shapes)
    result = topi.nn.relu(spanned_involution2d(*inputs, 7, stride, 3))
    return _program(f"spanned_s{stride}", dtype, inputs, result, "SpannedInvolution")


def _spanned_mma(dtype, stride, fragments) -> Program:
    channels, groups, size, hidden = 64, 4, 14, 16
    out = size // stride
    weight, bias = np.zeros((groups * 49, hidden, 1, 1), "float32"), np.zeros(groups * 49, "float32")
    weight, bias = pack_span_mma(weight, bias, (7, 7), fragments)
    inputs = _placeholders(dtype, (2, size, size, channels), (2, out, out, hidden), weight.shape)
    inputs.append(te.placeholder(bias.shape, str(bias.dtype), "bias"))
    result = topi.nn.relu(spanned_involution2d_mma(*inputs, (7, 7), groups, fragments, stride, 3))
    return _program(f"spanned_mma_s{stride}", dtype, inputs, result, "TensorCoreInvolution", tensor_cores=True)


def _convolution(name, dtype, shape, out, kernel, target, tf32) -> Program:
    fragments = mma_fragments(target, dtype, tf32)
    (x,) = _placeholders(dtype, shape)
    windows = conv2d_windows(x, (kernel,) * 2, (1, 1), (kernel // 2,) * 4)
    weight = np.zeros((out, shape[3], kernel, kernel), "float32")
    if fragments is not None:
        weight = pack_weight_mma(weight, fragments, pack_tiles(windows.pixels, out))
    else:
        weight = pack_weight_gemm(weight, pack_lanes(out))
    w = te.placeholder(weight.shape, dtype, "w")
    y = conv2d_mma(windows, w, out, fragments, dtype) if fragments else conv2d_gemm(windows, w, out, dtype)
    bias, residual = te.placeholder((1, 1, 1, out), dtype, "bias"), te.placeholder(y.shape, dtype, "residual")
    result = topi.nn.relu(topi.add(topi.add(y, bias), residual))
    rule = "TensorCoreGemm" if fragments else "CudaCoreGemm"
    return _program(f"convolution_{name}", dtype, [x, w, bias, residual], result, rule, fragments is not None)


def _joined(dtype, target) -> Program:
    """The third convolution of a block and that of its shortcut, which strides, in one sum."""
    fragments = mma_fragments(target, dtype)
    x, y = _placeholders(dtype, (2, 7, 7, 40), (2, 14, 14, 96))
    chunk = fragments.chunk if fragments else CHUNK
    windows = joined_windows(conv2d_windows(x, (1, 1)), conv2d_windows(y, (1, 1), (2, 2)), chunk)
    weights = [np.zeros((72, channels, 1, 1), "float32") for channels in (40, 96)]
    if fragments is not None:
        packed = np.concatenate([pack_weight_mma(weight, fragments, pack_tiles(98, 72)) for weight in weights], 1)
    else:
        packed = np.concatenate([pack_weight_gemm(weight, pack_lanes(72)) for weight in weights])
    w, bias = _placeholders(dtype, packed.shape, (1, 1, 1, 72))
    sums = conv2d_mma(windows, w, 72, fragments, dtype) if fragments else conv2d_gemm(windows, w, 72, dtype)
    rule = "TensorCoreGemm" if fragments else "CudaCoreGemm"
    result = topi.nn.relu(topi.add(sums, bias))
    return _program("joined", dtype, [x, y, w, bias], result, rule, fragments is not None)


def _one_pixel(dtype, target) -> Program:
    """A linear layer of one row, as large as a classifier's."""
    fragments = mma_fragments(target, dtype)
    (x,) = _placeholders(dtype, (1, 2048))
    weight = np.zeros((1000, 2048, 1, 1), "float32")
    packed = pack_weight_mma(weight, fragments, 1) if fragments else pack_weight(weight, 16)
    w = te.placeholder(packed.shape, dtype, "w")
    y = conv2d_mma(matrix_windows(x), w, 1000, fragments, dtype) if fragments else matmul_packed(x, w, 1000)
    rule = "TensorCoreGemm" if fragments else "Reduction"
    return _program("linear", dtype, [x, w], y, rule, fragments is not None)


def _pool(kind, rule, dtype) -> Program:
    """As the pipeline makes it: sums in float32."""
    (x,) = _placeholders(dtype, (2, 15, 13, 40))
    if kind == "average":
        mean = topi.divide(topi.sum(topi.cast(x, "float32"), axis=(1, 2)), tirx.const(195, "float32"))
        return _program("average", dtype, [x], topi.cast(mean, dtype), rule)
    pooled = topi.nn.pool2d(x, [3, 3], [2, 2], [1, 1], [1, 1, 1, 1], "max", layout="NHWC")
    return _program("max", dtype, [x], pooled, rule)


def _attention(dtype) -> Program:
    """Moved windows, a bias, values of another width and an epilogue."""
    *inputs, bias, scale = _placeholders(dtype, *[(2, 15, 13, 32)] * 2, (2, 15, 13, 16), (2, 5, 5), (1, 1, 1, 16))
    sums = local_attention2d(*inputs, 3, 2, layout="NHWC", bias=bias, border="shifted")
    result = topi.nn.relu(topi.multiply(sums, scale))
    return _program("attention", dtype, [*inputs, bias, scale], result, "LocalAttention")


def _transposition(dtype) -> Program:
    (x,) = _placeholders(dtype, (2, 3, 15, 13))
    return _program("transposition", dtype, [x], topi.transpose(x, (0, 2, 3, 1)), "ThreadPerOutput")


def _picture(dtype) -> Program:
    """A transposition that adds a channel of zeros."""
    (x,) = _placeholders(dtype, (2, 3, 15, 13))
    padded = topi.nn.pad(topi.transpose(x, (0, 2, 3, 1)), [0] * 4, [0, 0, 0, 1])
    return _program("picture", dtype, [x], padded, "ThreadPerOutput")


def _detection() -> Iterator[Program]:
    boxes, scores, groups = (
        te.placeholder(shape, dtype, name)
        for shape, dtype, name in (((2, 600, 4), "float32", "b"), ((2, 600), "float32", "s"), ((2, 600), "int64", "g"))
    )
    yield _program("nms", "float32", [boxes, scores, groups], nms(boxes, scores, groups, 0.1, 0.5, 100), "NMS")
    rois, levels = te.placeholder((2, 5, 4), "float32", "rois"), te.placeholder((2, 5), "int64", "levels")
    features = _placeholders("float32", (2, 12, 16, 32), (2, 6, 8, 32))
    aligned = roi_align(features, rois, levels, 3, (1 / 4, 1 / 8))
    yield _program("roi_align", "float32", [*features, rois, levels], aligned, "ThreadPerOutput")
    masks, corners = te.placeholder((2, 5, 28, 28), "float32", "m"), te.placeholder((2, 5, 4), "float32", "corners")
    yield _program("masks", "float32", [masks, corners], paste_masks(masks, corners, 30, 40), "ThreadPerOutput")
