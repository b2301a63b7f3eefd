# SPDX-License-Identifier: Apache-2.0
"""Gradients of involution's aggregation, as tensor expressions (NCHW)."""

from __future__ import annotations

from tvm import te, tirx

from .accumulate import accumulator_dtype
from .checks import Pair, as_pair, check_rank, check_same_dtype
from .involution import pad_rows_columns


def involution2d_grad_kernel(
    grad: te.Tensor,
    x: te.Tensor,
    groups: int,
    kernel_size: Pair,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> te.Tensor:
    """Return the gradient (N, G, KH, KW, OH, OW) by the kernel.

    A kernel value is shared by the channels of its group, so its gradient sums over them.

    Args:
        grad: gradient by the output, (N, C, OH, OW).
        x: the input, (N, C, H, W).

    Raises:
        UserError: ranks, dtypes or arguments that do not fit.
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    stride_h, stride_w = as_pair("stride", stride, 1)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_rank("grad", grad, 4)
    check_rank("x", x, 4)
    check_same_dtype(grad=grad, x=x)
    n, channels, out_h, out_w = grad.shape
    group_channels = int(channels) // groups
    source = pad_rows_columns(x, "NCHW", *as_pair("padding", padding, 0))
    c = te.reduce_axis((0, group_channels), "c")
    sum_dtype = accumulator_dtype(x.dtype)
    sums = te.compute(
        (n, groups, kernel_h, kernel_w, out_h, out_w),
        lambda b, g, u, v, i, j: te.sum(
            grad[b, g * group_channels + c, i, j].astype(sum_dtype)
            * source[b, g * group_channels + c, i * stride_h + u * dilation_h, j * stride_w + v * dilation_w].astype(
                sum_dtype
            ),
            axis=c,
        ),
        name="involution2d_grad_kernel",
    )
    return te.compute(sums.shape, lambda *index: sums(*index).astype(x.dtype), name="grad_kernel_cast", tag="elemwise")


def involution2d_grad_input(
    grad: te.Tensor,
    kernel: te.Tensor,
    input_size: tuple[int, int],
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
) -> te.Tensor:
    """Return the gradient (N, C, H, W) by x.

    Each input pixel gathers from the outputs whose windows cover it: no two threads write one value.

    Args:
        grad: gradient by the output, (N, C, OH, OW).
        kernel: (N, G, KH, KW, OH, OW).
        input_size: (H, W) of x, which stride leaves open.

    Raises:
        UserError: ranks, dtypes or arguments that do not fit.
    """
    stride_h, stride_w = as_pair("stride", stride, 1)
    pad_h, pad_w = as_pair("padding", padding, 0)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_rank("grad", grad, 4)
    check_rank("kernel", kernel, 6)
    check_same_dtype(grad=grad, kernel=kernel)
    n, channels, out_h, out_w = grad.shape
    _, groups, kernel_h, kernel_w, _, _ = kernel.shape
    group_channels = int(channels) // int(groups)
    u = te.reduce_axis((0, kernel_h), "u")
    v = te.reduce_axis((0, kernel_w), "v")
    sum_dtype = accumulator_dtype(grad.dtype)

    def gather(b, c, y, z):
        row, column = y + pad_h - u * dilation_h, z + pad_w - v * dilation_w
        i, j = tirx.floordiv(row, stride_h), tirx.floordiv(column, stride_w)
        covered = tirx.all(
            row >= 0,
            column >= 0,
            tirx.floormod(row, stride_h) == 0,
            tirx.floormod(column, stride_w) == 0,
            i < out_h,
            j < out_w,
        )
        product = grad[b, c, i, j].astype(sum_dtype) * kernel[b, c // group_channels, u, v, i, j].astype(sum_dtype)
        return te.sum(tirx.if_then_else(covered, product, tirx.const(0, sum_dtype)), axis=[u, v])

    sums = te.compute((n, channels, *input_size), gather, name="involution2d_grad_input")
    return te.compute(
        sums.shape, lambda *index: sums(*index).astype(grad.dtype), name="grad_input_cast", tag="elemwise"
    )
