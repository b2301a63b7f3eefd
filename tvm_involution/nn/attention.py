# SPDX-License-Identifier: Apache-2.0
"""Local self-attention through the involution operator: heads are groups, softmax(q k^T) is the kernel.

Section 3.3 and the appendix of arXiv 2103.06255 say how involution subsumes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..arguments import Size, checked
from ..errors import UserError
from .ops import involution2d
from .plain_tensors import check_floating, check_plain


@checked
def local_attention2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size,
    num_heads: Size,
    dilation: Size = 1,
    scale: float | None = None,
) -> Tensor:
    """Attend from every pixel to the window around it; positions outside the image take no part.

    Args:
        query, key: (N, C, H, W), C a multiple of `num_heads`.
        value: (N, CV, H, W), CV a multiple of `num_heads` too.
        kernel_size: odd side of the window.
        scale: factor of the query-key products; 1 / sqrt(C / num_heads) where it is None.

    Returns:
        (N, CV, H, W).

    Raises:
        UserError: shapes that do not fit, or an even `kernel_size`.
    """
    check_plain("local_attention2d", query=query, key=key, value=value)
    check_floating("local_attention2d", query=query, key=key, value=value)
    if query.dim() != 4 or value.dim() != 4:
        raise UserError(
            f"local_attention2d takes query and value of rank 4, (N, C, H, W), got {list(query.shape)} and "
            f"{list(value.shape)}"
        )
    n, channels, height, width = query.shape
    if key.shape != query.shape or (value.shape[0], *value.shape[2:]) != (n, height, width):
        raise UserError(
            f"local_attention2d takes query and key (N, C, H, W) and value (N, CV, H, W), got {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}"
        )
    if channels % num_heads or value.shape[1] % num_heads or kernel_size % 2 == 0:
        raise UserError(
            f"local_attention2d takes channels that are a multiple of num_heads and an odd kernel_size, got channels "
            f"{channels} and {value.shape[1]}, num_heads {num_heads}, kernel_size {kernel_size}"
        )
    head_channels = channels // num_heads
    padding = dilation * (kernel_size // 2)

    def windows(x: Tensor) -> Tensor:
        unfolded = torch.nn.functional.unfold(x, kernel_size, dilation, padding)
        return unfolded.view(n, -1, kernel_size**2, height, width)

    keys = windows(key).unflatten(1, (num_heads, head_channels))
    relation = (query.unflatten(1, (num_heads, head_channels)).unsqueeze(3) * keys).sum(2)
    inside = windows(torch.ones_like(query[:, :1])).bool()
    scale = head_channels**-0.5 if scale is None else float(scale)
    kernel = (relation * scale).masked_fill(~inside, float("-inf")).softmax(2)
    kernel = kernel.unflatten(2, (kernel_size, kernel_size))
    return involution2d(value, kernel, 1, padding, dilation)
