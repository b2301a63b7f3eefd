# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as an involution.

Self-attention over a window is an involution whose kernel is generated from query-key relations instead of a single
pixel, with heads as groups (section 3.3 and the appendix of arXiv 2103.06255): softmax(q k^T) is the kernel, and the
weighted sum of values is the same aggregation.
"""

from __future__ import annotations

from tvm import te, tirx

from ..arguments import checked
from ..errors import UserError
from .accumulate import accumulator_dtype
from .checks import Pair, as_pair, check_groups, check_layout, check_rank, check_same_dtype, check_shape
from .involution import involution2d


def attention_kernel(
    query: te.Tensor,
    key: te.Tensor,
    kernel_size: Pair,
    num_heads: int,
    dilation: Pair = 1,
    scale: float | None = None,
    layout: str = "NCHW",
) -> te.Tensor:
    """Generate the kernel of local self-attention: softmax of scaled query-key products over each pixel's window.

    Args:
        query, key: (N, C, H, W), in layout NHWC (N, H, W, C); head h owns the channels h*C/heads to (h+1)*C/heads.
        kernel_size: odd (KH, KW), centred on the pixel; positions outside the image take no part in the softmax.
        scale: factor of the products, 1/sqrt(C/heads) by default.

    Returns:
        (N, heads, KH, KW, H, W), in NHWC (N, H, W, heads, KH, KW): what `involution2d` takes. Blocks: `relation`,
        `relation_max`, `relation_exp`, `relation_sum`, `kernel`.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit.
    """
    kernel_h, kernel_w = as_pair("kernel_size", kernel_size, 1)
    dilation_h, dilation_w = as_pair("dilation", dilation, 1)
    check_layout(layout, 2)
    check_rank("query", query, 4)
    check_shape("key", key, query.shape)
    check_same_dtype(query=query, key=key)
    n, channels, height, width = (query.shape[layout.index(dim)] for dim in "NCHW")
    check_groups("query", query, channels, num_heads)
    if kernel_h % 2 == 0 or kernel_w % 2 == 0:
        raise UserError(f"the window of local attention must be odd to be centred, got {kernel_h}x{kernel_w}")
    head_channels = int(channels) // num_heads
    dtype = accumulator_dtype(query.dtype)
    factor = tirx.const(head_channels**-0.5 if scale is None else scale, dtype)
    shape = (n, num_heads, kernel_h, kernel_w, height, width)
    c = te.reduce_axis((0, head_channels), "c")

    def pixel(tensor, b, channel, row, column):
        value = tensor[b, channel, row, column] if layout == "NCHW" else tensor[b, row, column, channel]
        return value.astype(dtype)

    def position(u, v, i, j):
        row = i + (u - kernel_h // 2) * dilation_h
        column = j + (v - kernel_w // 2) * dilation_w
        return row, column, tirx.all(row >= 0, row < height, column >= 0, column < width)

    def product(b, h, u, v, i, j):
        row, column, inside = position(u, v, i, j)
        channel = h * head_channels + c
        value = pixel(query, b, channel, i, j) * pixel(key, b, channel, row, column)
        return te.sum(tirx.if_then_else(inside, value, tirx.const(0, dtype)), axis=c)

    relation = te.compute(shape, product, name="relation")

    def masked(b, h, u, v, i, j):
        inside = position(u, v, i, j)[2]
        return tirx.if_then_else(inside, relation[b, h, u, v, i, j] * factor, tirx.min_value(dtype))

    window = [te.reduce_axis((0, kernel_h), "u"), te.reduce_axis((0, kernel_w), "v")]
    peak = te.compute(
        (n, num_heads, height, width),
        lambda b, h, i, j: te.max(masked(b, h, window[0], window[1], i, j), axis=window),
        name="relation_max",
    )
    exponential = te.compute(
        shape,
        lambda b, h, u, v, i, j: tirx.exp(masked(b, h, u, v, i, j) - peak[b, h, i, j]),
        name="relation_exp",
    )
    window = [te.reduce_axis((0, kernel_h), "u"), te.reduce_axis((0, kernel_w), "v")]
    total = te.compute(
        (n, num_heads, height, width),
        lambda b, h, i, j: te.sum(exponential[b, h, window[0], window[1], i, j], axis=window),
        name="relation_sum",
    )

    def weight(b, h, u, v, i, j):
        return (exponential[b, h, u, v, i, j] / total[b, h, i, j]).astype(query.dtype)

    if layout == "NCHW":
        return te.compute(shape, weight, name="kernel")
    return te.compute(
        (n, height, width, num_heads, kernel_h, kernel_w),
        lambda b, i, j, h, u, v: weight(b, h, u, v, i, j),
        name="kernel",
    )


@checked
def local_attention2d(
    query: te.Tensor,
    key: te.Tensor,
    value: te.Tensor,
    kernel_size: Pair,
    num_heads: int,
    dilation: Pair = 1,
    scale: float | None = None,
    layout: str = "NCHW",
) -> te.Tensor:
    """Local self-attention: `attention_kernel`, then `involution2d` of the values with heads as groups.

    Args:
        query, key: (N, C, H, W), in layout NHWC (N, H, W, C).
        value: (N, CV, H, W), in NHWC (N, H, W, CV); CV a multiple of `num_heads` too.
        kernel_size, scale: as of `attention_kernel`.

    Returns:
        (N, CV, H, W), in NHWC (N, H, W, CV). Blocks: those of `attention_kernel` and `involution2d`.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit.
    """
    check_layout(layout, 2)
    check_rank("value", value, 4)
    axis = layout.index("C")
    check_shape("value", value, [*query.shape[:axis], value.shape[axis], *query.shape[axis + 1 :]])
    kernel = attention_kernel(query, key, kernel_size, num_heads, dilation, scale, layout)
    size = as_pair("kernel_size", kernel_size, 1)
    step = as_pair("dilation", dilation, 1)
    padding = tuple(d * (k // 2) for d, k in zip(step, size, strict=True))
    return involution2d(value, kernel, 1, padding, step, layout)
