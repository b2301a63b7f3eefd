# SPDX-License-Identifier: Apache-2.0
"""Gradients of involution's aggregation, as tensor expressions (NCHW)."""

from __future__ import annotations

from tvm import te, tirx

from ..arguments import checked
from .accumulate import accumulator_dtype, cast_sums
from .checks import Pair, as_pair, check_groups, check_rank, check_same_dtype, check_shape
from .involution import involution2d_output_size, pad_space


@checked
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
        groups: G, a divisor of C.

    Returns:
        (N, G, KH, KW, OH, OW), of the dtype of x. Blocks: `pad_temp` where there is padding,
        `involution2d_grad_kernel` (the sums), `grad_kernel_cast` for the half types.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit.
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    stride_h, stride_w = as_pair("stride", stride, 1)
    pad_h, pad_w = as_pair("padding", padding, 0)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_rank("x", x, 4)
    check_same_dtype(grad=grad, x=x)
    n, channels, height, width = x.shape
    check_groups("x", x, channels, groups)
    out_h = involution2d_output_size(height, kernel_h, stride_h, pad_h, dilation_h)
    out_w = involution2d_output_size(width, kernel_w, stride_w, pad_w, dilation_w)
    check_shape("grad", grad, (n, channels, out_h, out_w))
    group_channels = int(channels) // groups
    source = pad_space(x, "NCHW", (pad_h, pad_w))
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
    return cast_sums(sums, x.dtype, "grad_kernel_cast")


@checked
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

    Returns:
        (N, C, H, W), of the dtype of grad. Blocks: `involution2d_grad_input` (the sums), `grad_input_cast` for the half
        types.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit.
    """
    height, width = as_pair("input_size", input_size, 1)
    stride_h, stride_w = as_pair("stride", stride, 1)
    pad_h, pad_w = as_pair("padding", padding, 0)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_rank("grad", grad, 4)
    check_rank("kernel", kernel, 6)
    check_same_dtype(grad=grad, kernel=kernel)
    n, channels = grad.shape[:2]
    groups, kernel_h, kernel_w = (int(d) for d in kernel.shape[1:4])
    check_groups("grad", grad, channels, groups)
    out_h = involution2d_output_size(height, kernel_h, stride_h, pad_h, dilation_h)
    out_w = involution2d_output_size(width, kernel_w, stride_w, pad_w, dilation_w)
    check_shape("grad", grad, (n, channels, out_h, out_w))
    check_shape("kernel", kernel, (n, groups, kernel_h, kernel_w, out_h, out_w))
    group_channels = int(channels) // groups
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

    sums = te.compute((n, channels, height, width), gather, name="involution2d_grad_input")
    return cast_sums(sums, grad.dtype, "grad_input_cast")
