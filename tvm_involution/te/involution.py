# SPDX-License-Identifier: Apache-2.0
"""The involution operator: equation 4 of arXiv 2103.06255, the aggregation of a window by the pixel's own kernel."""

from __future__ import annotations

from typing import Any

import tvm
from tvm import te, tirx

from ..arguments import checked
from ..errors import UserError
from .accumulate import accumulator_dtype, cast_sums
from .checks import Pair, as_pair, check_layout, check_rank, check_same_dtype, check_window_fits, shape_text


@checked
def involution2d_output_size(size: Any, kernel_size: int, stride: int, padding: int, dilation: int) -> Any:
    """Return the output's rows (or columns) for `size` input rows, as of a convolution; ints or TVM expressions."""
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
    stride_h, stride_w = as_pair("stride", stride, 1)
    pad_h, pad_w = as_pair("padding", padding, 0)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_layout(layout)
    check_rank("x", x, 4)
    check_rank("kernel", kernel, 4, 6)
    sum_dtype = accumulator_dtype(x.dtype)
    if sum_dtype == str(x.dtype) or sum_dtype != str(kernel.dtype):
        check_same_dtype(x=x, kernel=kernel)

    n, channels, height, width = (x.shape[layout.index(dim)] for dim in "NCHW")
    groups, kernel_h, kernel_w = _kernel_dims(kernel, layout, kernel_size)
    if groups == 0 or int(channels) % groups:
        raise UserError(
            f"the channels of x must be a multiple of the kernel's {groups} groups, got x {shape_text(x)}, "
            f"kernel {shape_text(kernel)}, layout {layout}"
        )
    group_channels = int(channels) // groups
    out_h = involution2d_output_size(height, kernel_h, stride_h, pad_h, dilation_h)
    out_w = involution2d_output_size(width, kernel_w, stride_w, pad_w, dilation_w)
    window = (dilation_h * (kernel_h - 1) + 1, dilation_w * (kernel_w - 1) + 1)
    check_window_fits(x, window, (out_h, out_w))
    _check_kernel_shape(x, kernel, layout, (n, out_h, out_w))

    source = pad_rows_columns(x, layout, pad_h, pad_w)
    u = te.reduce_axis((0, kernel_h), "u")
    v = te.reduce_axis((0, kernel_w), "v")

    def tap(b, c, i, j):
        row, column = i * stride_h + u * dilation_h, j * stride_w + v * dilation_w
        value = source[b, c, row, column] if layout == "NCHW" else source[b, row, column, c]
        weight = _kernel_at(kernel, layout, (kernel_h, kernel_w), b, c // group_channels, u, v, i, j)
        return te.sum(value.astype(sum_dtype) * weight.astype(sum_dtype), axis=[u, v])

    if layout == "NCHW":
        shape = (n, channels, out_h, out_w)
        sums = te.compute(shape, tap, name="involution2d", tag="involution2d")
    else:
        shape = (n, out_h, out_w, channels)
        sums = te.compute(shape, lambda b, i, j, c: tap(b, c, i, j), name="involution2d", tag="involution2d")
    return cast_sums(sums, x.dtype, "involution2d_cast")


def pad_rows_columns(x: te.Tensor, layout: str, pad_h: int, pad_w: int) -> te.Tensor:
    """Return x with zeros around its rows and columns (block `pad_temp`), x itself where there are none."""
    if pad_h == 0 and pad_w == 0:
        return x
    row_axis, column_axis = layout.index("H"), layout.index("W")
    height, width = x.shape[row_axis], x.shape[column_axis]
    shape = list(x.shape)
    shape[row_axis], shape[column_axis] = height + 2 * pad_h, width + 2 * pad_w

    def padded(*index):
        row, column = index[row_axis] - pad_h, index[column_axis] - pad_w
        inner = list(index)
        inner[row_axis], inner[column_axis] = row, column
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return tirx.if_then_else(inside, x(*inner), tirx.const(0, x.dtype))

    return te.compute(shape, padded, name="pad_temp", tag="injective,pad")


def _kernel_dims(kernel: te.Tensor, layout: str, kernel_size: Pair | None) -> tuple[int, int, int]:
    """Return (G, KH, KW) of a kernel in either form."""
    if len(kernel.shape) == 6:
        first = 1 if layout == "NCHW" else 3
        groups, kernel_h, kernel_w = (int(d) for d in kernel.shape[first : first + 3])
        if kernel_size is not None and as_pair("kernel_size", kernel_size, 1) != (kernel_h, kernel_w):
            raise UserError(f"kernel_size {kernel_size} contradicts the kernel's shape {shape_text(kernel)}")
        return groups, kernel_h, kernel_w
    if kernel_size is None:
        raise UserError(f"a packed kernel {shape_text(kernel)} needs kernel_size=(KH, KW)")
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    groups, rest = divmod(int(kernel.shape[layout.index("C")]), kernel_h * kernel_w)
    if rest:
        raise UserError(
            f"a packed kernel's channels must be a multiple of {kernel_h}x{kernel_w} taps, got {shape_text(kernel)}"
        )
    return groups, kernel_h, kernel_w


def _check_kernel_shape(x: te.Tensor, kernel: te.Tensor, layout: str, wanted: tuple[Any, Any, Any]) -> None:
    last = len(kernel.shape) - 1
    axes = (0, last - 1, last) if layout == "NCHW" else (0, 1, 2)
    got = tuple(kernel.shape[axis] for axis in axes)
    analyzer = tvm.sym.Analyzer()
    if not all(analyzer.can_prove_equal(a, b) for a, b in zip(got, wanted, strict=True)):
        raise UserError(
            f"the kernel's (N, OH, OW) must be ({', '.join(map(str, wanted))}), got kernel {shape_text(kernel)} for x "
            f"{shape_text(x)} in {layout}"
        )


def _kernel_at(kernel: te.Tensor, layout: str, size: tuple[int, int], b, g, u, v, i, j):
    if len(kernel.shape) == 6:
        return kernel[b, g, u, v, i, j] if layout == "NCHW" else kernel[b, i, j, g, u, v]
    packed = (g * size[0] + u) * size[1] + v
    return kernel[b, packed, i, j] if layout == "NCHW" else kernel[b, i, j, packed]
