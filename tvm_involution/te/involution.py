# SPDX-License-Identifier: Apache-2.0
"""The involution operator: equation 4 of arXiv 2103.06255, the aggregation of a window by the pixel's own kernel.

The paper's pixels lie along two axes; here also along one (audio, spectra) or three (video, volumes).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm import te, tirx

from ..arguments import Count, Size, checked
from ..errors import UserError
from .accumulate import accumulator_dtype, cast_sums
from .blocks import Block
from .checks import (
    Pair,
    PerAxis,
    check_layout,
    check_rank,
    check_same_dtype,
    check_shape,
    check_window_fits,
    per_axis,
    shape_text,
    space_of,
)

# names of the reduction axes, of the last spatial axes
_TAPS = "tuv"


@checked
def involution2d_output_size(
    size: int | tirx.Expr, kernel_size: Size, stride: Size, padding: Count, dilation: Size
) -> Any:
    """Return the output's size along an axis of `size` input pixels, as of a convolution; ints or TVM expressions."""
    return (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1


@checked
def involution2d(
    x: te.Tensor,
    kernel: te.Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    layout: str = "NCHW",
    kernel_size: Pair | None = None,
) -> te.Tensor:
    """Aggregate the window of every pixel with that pixel's kernel, shared by the channels of a group.

        out[n, c, i, j] = sum over u, v of  kernel[n, c // (C // G), u, v, i, j]
                                            * x[n, c, i * sh - ph + u * dh, j * sw - pw + v * dw]

    with zeros outside x. Sums are kept in float32 for float16 and bfloat16.

    Args:
        x: (N, C, H, W), in layout NHWC (N, H, W, C).
        kernel: (N, G, KH, KW, OH, OW), in NHWC (N, OH, OW, G, KH, KW): there the taps of a pixel and group lie side
            by side. Or packed, as a 1x1 convolution makes it: (N, G*KH*KW, OH, OW), in NHWC (N, OH, OW, G*KH*KW).
            Of the dtype of x, or of the sums.
        stride: int or (rows, columns), as padding and dilation.
        kernel_size: (KH, KW), needed for a packed kernel.

    Returns:
        (N, C, OH, OW), in NHWC (N, OH, OW, C), of the dtype of x. Blocks: `pad_temp` where there is padding,
        `involution2d` (the sums), `involution2d_cast` for the half types.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit, with what was expected and what came.
    """
    check_layout(layout, 2)
    return involution(x, kernel, stride, padding, dilation, layout, kernel_size)


@checked
def involution(
    x: te.Tensor,
    kernel: te.Tensor,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
    layout: str = "NCHW",
    kernel_size: PerAxis | None = None,
) -> te.Tensor:
    """`involution2d` along as many axes as `layout` has: NCW or NWC, NCHW or NHWC, NCDHW or NDHWC.

    Args:
        x: (N, C, *size), in a layout with channels last (N, *size, C).
        kernel: (N, G, *kernel_size, *out_size), with channels last (N, *out_size, G, *kernel_size); or packed,
            (N, G * taps, *out_size) or (N, *out_size, G * taps). Of the dtype of x, or of the sums.
        stride: int or one for each axis, as padding and dilation.
        kernel_size: one for each axis or an int, needed for a packed kernel.

    Returns:
        (N, C, *out_size) or (N, *out_size, C), of the dtype of x. The blocks have the names that they have in two
        dimensions, so one schedule serves all.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit, with what was expected and what came.
    """
    check_layout(layout)
    space = space_of(layout)
    strides, pads, dilations = (
        per_axis(name, value, minimum, len(space))
        for name, value, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))
    )
    check_rank("x", x, len(layout))
    check_rank("kernel", kernel, len(layout), 2 + 2 * len(space))
    sum_dtype = accumulator_dtype(x.dtype)
    if sum_dtype == str(x.dtype) or sum_dtype != str(kernel.dtype):
        check_same_dtype(x=x, kernel=kernel)

    n, channels, *size = (x.shape[layout.index(axis)] for axis in f"NC{space}")
    groups, window = _kernel_dims(kernel, layout, kernel_size)
    if groups == 0 or int(channels) % groups:
        raise UserError(
            f"the channels of x must be a multiple of the kernel's {groups} groups, got x {shape_text(x)}, "
            f"kernel {shape_text(kernel)}, layout {layout}"
        )
    group_channels = int(channels) // groups
    out_size = tuple(map(involution2d_output_size, size, window, strides, pads, dilations))
    seen = [step * (extent - 1) + 1 for step, extent in zip(dilations, window, strict=True)]
    check_window_fits(x, seen, out_size)
    _check_kernel_shape(x, kernel, layout, (n, *out_size), f"stride {strides}, padding {pads}, dilation {dilations}")

    source = pad_space(x, layout, pads)
    taps = [te.reduce_axis((0, extent), name) for extent, name in zip(window, _TAPS[-len(space) :], strict=True)]

    def tap(*index):
        position = dict(zip(layout, index, strict=True))
        pixel = [position[axis] for axis in space]
        weight = _kernel_at(kernel, layout, window, position["N"], position["C"] // group_channels, taps, pixel)
        for axis, step, t, dilated in zip(space, strides, taps, dilations, strict=True):
            position[axis] = position[axis] * step + t * dilated
        value = source(*(position[axis] for axis in layout))
        return te.sum(value.astype(sum_dtype) * weight.astype(sum_dtype), axis=taps)

    extents = dict(zip(f"NC{space}", (n, channels, *out_size), strict=True))
    shape = tuple(extents[axis] for axis in layout)
    sums = te.compute(shape, tap, name=Block.INVOLUTION, tag="involution2d")
    return cast_sums(sums, x.dtype, "involution2d_cast")


def check_hidden(
    x: te.Tensor, hidden: te.Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Raise `UserError` where `hidden` is not (N, OH, OW, R) for x (N, H, W, C)."""
    check_rank("hidden", hidden, 4)
    window, strides, dilations = (
        per_axis(name, value, 1, 2)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    out_size = map(
        involution2d_output_size, x.shape[1:3], window, strides, per_axis("padding", padding, 0, 2), dilations
    )
    check_shape("hidden", hidden, (x.shape[0], *out_size, hidden.shape[3]))


def pad_space(x: te.Tensor, layout: str, pads: Sequence[int]) -> te.Tensor:
    """Return x with so many zeros before and behind each spatial axis (block `pad_temp`); x itself without any."""
    if not any(pads):
        return x
    axes = [layout.index(axis) for axis in space_of(layout)]
    shape = list(x.shape)
    for axis, pad in zip(axes, pads, strict=True):
        shape[axis] = shape[axis] + 2 * pad

    def padded(*index):
        inner, inside = list(index), []
        for axis, pad in zip(axes, pads, strict=True):
            inner[axis] = index[axis] - pad
            inside += [inner[axis] >= 0, inner[axis] < x.shape[axis]]
        return tirx.if_then_else(tirx.all(*inside), x(*inner), tirx.const(0, x.dtype))

    return te.compute(shape, padded, name=Block.PADDED, tag="injective,pad")


def _kernel_dims(kernel: te.Tensor, layout: str, kernel_size: PerAxis | None) -> tuple[int, tuple[int, ...]]:
    """Return the groups and the taps along each axis of a kernel in either form."""
    axes = len(space_of(layout))
    if len(kernel.shape) > len(layout):
        first = 1 if layout[1] == "C" else 1 + axes
        groups, *size = (int(d) for d in kernel.shape[first : first + 1 + axes])
        if kernel_size is not None and per_axis("kernel_size", kernel_size, 1, axes) != tuple(size):
            raise UserError(f"kernel_size {kernel_size} contradicts the kernel's shape {shape_text(kernel)}")
        return groups, tuple(size)
    if kernel_size is None:
        wanted = ", ".join(f"K{axis}" for axis in space_of(layout))
        raise UserError(f"a packed kernel {shape_text(kernel)} needs kernel_size=({wanted})")
    taken = per_axis("kernel_size", kernel_size, 1, axes)
    groups, rest = divmod(int(kernel.shape[layout.index("C")]), math.prod(taken))
    if rest:
        taps = "x".join(map(str, taken))
        raise UserError(f"a packed kernel's channels must be a multiple of {taps} taps, got {shape_text(kernel)}")
    return groups, taken


def _check_kernel_shape(x: te.Tensor, kernel: te.Tensor, layout: str, wanted: Sequence[Any], geometry: str) -> None:
    """Check (N, *out_size), which follows from x and the `geometry`."""
    axes = len(wanted) - 1
    got = (kernel.shape[0], *(kernel.shape[-axes:] if layout[1] == "C" else kernel.shape[1 : 1 + axes]))
    analyzer = tvm.sym.Analyzer()
    if not all(analyzer.can_prove_equal(a, b) for a, b in zip(got, wanted, strict=True)):
        names = ", ".join(f"O{axis}" for axis in space_of(layout))
        raise UserError(
            f"the kernel's (N, {names}) must be ({', '.join(map(str, wanted))}), got kernel {shape_text(kernel)} for x "
            f"{shape_text(x)} in {layout}, {geometry}"
        )


def _kernel_at(kernel: te.Tensor, layout: str, size: Sequence[int], b, g, taps, pixel):
    if len(kernel.shape) > len(layout):
        return kernel(b, g, *taps, *pixel) if layout[1] == "C" else kernel(b, *pixel, g, *taps)
    packed = g
    for tap, extent in zip(taps, size, strict=True):
        packed = packed * extent + tap
    return kernel(b, packed, *pixel) if layout[1] == "C" else kernel(b, *pixel, packed)
