# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and the whole involution layer as one expression, for schedules that fuse the two.

The generator is W1 phi: H(x) = W2 relu(bn(W1 x)) + b (equation 6 of arXiv 2103.06255; `conv1` and `conv2` of
cls/mmcls/models/utils/involution_naive.py), on the average-pooled x where the stride is above 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .accumulate import accumulator_dtype, cast_sums
from .blocks import Block
from .checks import Pair, as_pair, check_layout, check_rank, check_shape
from .convolution import conv2d_packed
from .involution import check_hidden, involution2d


@checked
@dataclass(frozen=True)
class BatchNorm:
    """Inference batch norm over (R,) channels: (x - mean) / sqrt(variance + epsilon) * scale + shift."""

    scale: te.Tensor
    shift: te.Tensor
    mean: te.Tensor
    variance: te.Tensor
    epsilon: float = 1e-5


@checked
@dataclass(frozen=True)
class KernelGenerator:
    """The weights that make a kernel out of a pixel.

    Attributes:
        reduce_weight: (R, C), the 1x1 convolution that reduces the channels.
        span_weight: (G*KH*KW, R), the 1x1 convolution that spans the kernel; rows in order (group, row, column).
        span_bias: (G*KH*KW,).
        kernel_size: (KH, KW).
        batch_norm: after the reduction; None where it is folded into `reduce_weight` and `reduce_bias`.
        reduce_bias: (R,), or None.
    """

    reduce_weight: te.Tensor
    span_weight: te.Tensor
    span_bias: te.Tensor
    kernel_size: tuple[int, int]
    batch_norm: BatchNorm | None = None
    reduce_bias: te.Tensor | None = None


@checked
def generate_kernel(x: te.Tensor, generator: KernelGenerator, stride: Pair = 1, layout: str = "NCHW") -> te.Tensor:
    """Generate the kernel of every output pixel.

    Args:
        x: (N, C, H, W), in layout NHWC (N, H, W, C).
        stride: window and step of the average pooling before, where above 1. Windows cut by the border average what is
            inside (`ceil_mode=True, count_include_pad=False`), so odd sizes work; on sizes that the stride divides this
            is the official AvgPool2d(stride, stride).

    Returns:
        (N, G, KH, KW, OH, OW), in NHWC (N, OH, OW, G, KH, KW): what `involution2d` takes. Blocks: `avg_pool_sum` and
        `avg_pool` where the stride is above 1, `reduce`, `reduce_act`, `span`, `kernel`.

    Raises:
        UserError: weights that do not fit x or each other.
    """
    check_layout(layout, 2)
    check_rank("x", x, 4)
    stride_h, stride_w = as_pair("stride", stride, 1)
    kernel_h, kernel_w = as_pair("kernel_size", generator.kernel_size, 1)
    check_rank("reduce_weight", generator.reduce_weight, 2)
    check_rank("span_weight", generator.span_weight, 2)
    reduced, channels = (int(d) for d in generator.reduce_weight.shape)
    spanned = int(generator.span_weight.shape[0])
    if channels != int(x.shape[layout.index("C")]) or int(generator.span_weight.shape[1]) != reduced:
        raise UserError(
            f"reduce_weight [{reduced}, {channels}] and span_weight {list(generator.span_weight.shape)} do not fit x "
            f"{list(x.shape)} in {layout}; expected (R, C) and (G*KH*KW, R)"
        )
    if spanned % (kernel_h * kernel_w):
        raise UserError(f"span_weight's {spanned} rows are no multiple of {kernel_h}x{kernel_w} taps")
    check_shape("span_bias", generator.span_bias, (spanned,))
    if generator.reduce_bias is not None:
        check_shape("reduce_bias", generator.reduce_bias, (reduced,))
    if generator.batch_norm is not None:
        for name in ("scale", "shift", "mean", "variance"):
            check_shape(f"batch_norm's {name}", getattr(generator.batch_norm, name), (reduced,))

    pixels = _average_pool(x, layout, stride_h, stride_w) if (stride_h, stride_w) != (1, 1) else x
    n, out_h, out_w = (pixels.shape[layout.index(dim)] for dim in "NHW")
    sum_dtype = accumulator_dtype(x.dtype)

    def pixel(b, i, j, c):
        return (pixels[b, c, i, j] if layout == "NCHW" else pixels[b, i, j, c]).astype(sum_dtype)

    # pixel-major inside whatever the layout: the generator is a matrix product over pixels
    c = te.reduce_axis((0, channels), "c")
    hidden = te.compute(
        (n, out_h, out_w, reduced),
        lambda b, i, j, r: te.sum(pixel(b, i, j, c) * generator.reduce_weight[r, c].astype(sum_dtype), axis=c),
        name="reduce",
    )
    active = te.compute(
        hidden.shape,
        lambda b, i, j, r: _activate(hidden[b, i, j, r], r, generator, sum_dtype),
        name="reduce_act",
    )
    r = te.reduce_axis((0, reduced), "r")
    span = te.compute(
        (n, out_h, out_w, spanned),
        lambda b, i, j, k: te.sum(active[b, i, j, r] * generator.span_weight[k, r].astype(sum_dtype), axis=r),
        name="span",
    )
    groups = spanned // (kernel_h * kernel_w)

    def value(b, g, u, v, i, j):
        k = (g * kernel_h + u) * kernel_w + v
        return (span[b, i, j, k] + generator.span_bias[k].astype(sum_dtype)).astype(x.dtype)

    if layout == "NCHW":
        return te.compute((n, groups, kernel_h, kernel_w, out_h, out_w), value, name=Block.KERNEL)
    return te.compute(
        (n, out_h, out_w, groups, kernel_h, kernel_w),
        lambda b, i, j, g, u, v: value(b, g, u, v, i, j),
        name=Block.KERNEL,
    )


@checked
def generated_involution2d(
    x: te.Tensor,
    generator: KernelGenerator,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    layout: str = "NCHW",
) -> te.Tensor:
    """The whole involution layer: `generate_kernel`, then `involution2d`; arguments and blocks as theirs.

    Returns:
        (N, C, OH, OW), in NHWC (N, OH, OW, C).
    """
    kernel = generate_kernel(x, generator, stride, layout)
    return involution2d(x, kernel, stride, padding, dilation, layout)


@checked
def spanned_involution2d(
    x: te.Tensor,
    hidden: te.Tensor,
    span_weight: te.Tensor,
    span_bias: te.Tensor,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    inner_dtype: str | None = None,
    groups: Size | None = None,
) -> te.Tensor:
    """The second half of the layer in NHWC, as a network's pipeline fuses it: span the kernel, aggregate.

    Args:
        x: (N, H, W, C).
        hidden: (N, OH, OW, R), the reduced and activated pixels, of the dtype of x.
        span_weight: W2 (G*KH*KW, R, 1, 1) from `pack_weight`.
        span_bias: (1, 1, 1, G*KH*KW), of any dtype. Or longer, as far as the whole packs of `span_weight`, which a
            schedule then computes without a border; what lies behind G*KH*KW is not used.
        inner_dtype: of the kernel and the padded x, which exist only inside; that of x by default.
        groups: G, needed where `span_bias` is longer than G*KH*KW.

    Returns:
        (N, OH, OW, C), of the dtype of x. Blocks: `conv2d` (the sums of the span, over all packed channels),
        `conv2d_out`, `kernel` (with the bias, as long as it), `taps` (its first G*KH*KW, where it is longer), those of
        `involution2d`, and where `inner_dtype` is another than that of x, `x_cast` and `involution2d_cast`.

    Raises:
        UserError: shapes that do not fit.
    """
    for name, tensor in (("x", x), ("span_bias", span_bias)):
        check_rank(name, tensor, 4)
    check_rank("span_weight", span_weight, 5, 6)
    check_hidden(x, hidden, kernel_size, stride, padding, dilation)
    inner = inner_dtype or str(x.dtype)
    spanned = int(span_bias.shape[-1])
    check_shape("span_bias", span_bias, (1, 1, 1, spanned))
    span = conv2d_packed(hidden, span_weight, spanned, out_dtype=inner)
    kernel = te.compute(
        span.shape,
        lambda b, i, j, k: span[b, i, j, k] + span_bias[0, 0, 0, k].astype(inner),
        name=Block.KERNEL,
        tag="injective",
    )
    taps = spanned if groups is None else groups * math.prod(as_pair("kernel_size", kernel_size, 1))
    if taps != spanned:
        if taps > spanned:
            raise UserError(f"span_bias's {spanned} channels are fewer than the {taps} taps of {groups} groups")
        whole = kernel
        kernel = te.compute(
            (*whole.shape[:3], taps), lambda b, i, j, k: whole[b, i, j, k], name=Block.TAPS, tag="injective"
        )
    source = cast_sums(x, inner, "x_cast")
    sums = involution2d(source, kernel, stride, padding, dilation, "NHWC", kernel_size)
    return cast_sums(sums, x.dtype, "involution2d_cast")


def _activate(value, r, generator: KernelGenerator, dtype: str):
    if generator.reduce_bias is not None:
        value = value + generator.reduce_bias[r].astype(dtype)
    norm = generator.batch_norm
    if norm is not None:
        deviation = tirx.sqrt(norm.variance[r].astype(dtype) + tirx.const(norm.epsilon, dtype))
        value = (value - norm.mean[r].astype(dtype)) / deviation * norm.scale[r].astype(dtype)
        value = value + norm.shift[r].astype(dtype)
    # not max(value, 0): TVM's max turns NaN into 0
    zero = tirx.const(0, dtype)
    return tirx.Select(value < zero, zero, value)


def _average_pool(x: te.Tensor, layout: str, stride_h: int, stride_w: int) -> te.Tensor:
    n, channels, height, width = (x.shape[layout.index(dim)] for dim in "NCHW")
    out_h, out_w = (height + stride_h - 1) // stride_h, (width + stride_w - 1) // stride_w
    u = te.reduce_axis((0, stride_h), "u")
    v = te.reduce_axis((0, stride_w), "v")
    dtype = accumulator_dtype(x.dtype)

    def total(b, c, i, j):
        row, column = i * stride_h + u, j * stride_w + v
        value = x[b, c, row, column] if layout == "NCHW" else x[b, row, column, c]
        inside = tirx.all(row < height, column < width)
        return te.sum(tirx.if_then_else(inside, value.astype(dtype), tirx.const(0, dtype)), axis=[u, v])

    def mean(i, j, value):
        rows = tirx.min(height - i * stride_h, stride_h)
        columns = tirx.min(width - j * stride_w, stride_w)
        return (value / (rows * columns).astype(dtype)).astype(x.dtype)

    if layout == "NCHW":
        sums = te.compute((n, channels, out_h, out_w), total, name="avg_pool_sum")
        return te.compute(sums.shape, lambda b, c, i, j: mean(i, j, sums[b, c, i, j]), name="avg_pool")
    sums = te.compute((n, out_h, out_w, channels), lambda b, i, j, c: total(b, c, i, j), name="avg_pool_sum")
    return te.compute(sums.shape, lambda b, i, j, c: mean(i, j, sums[b, i, j, c]), name="avg_pool")
