# SPDX-License-Identifier: Apache-2.0
"""Local self-attention through the involution operator: heads are groups, softmax(q k^T) is the kernel.

Section 3.3 and the appendix of arXiv 2103.06255 say how involution subsumes it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import involution2d


def local_attention2d(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, num_heads: int, dilation: int = 1
) -> Tensor:
    """Attend from every pixel to the window around it; positions outside the image take no part.

    Args:
        query, key, value: (N, C, H, W), C a multiple of `num_heads`.
        kernel_size: odd side of the window.

    Returns:
        (N, C, H, W).
    """
    n, channels, height, width = query.shape
    head_channels = channels // num_heads
    padding = dilation * (kernel_size // 2)

    def windows(x: Tensor) -> Tensor:
        unfolded = torch.nn.functional.unfold(x, kernel_size, dilation, padding)
        return unfolded.view(n, -1, kernel_size**2, height, width)

    keys = windows(key).unflatten(1, (num_heads, head_channels))
    relation = (query.unflatten(1, (num_heads, head_channels)).unsqueeze(3) * keys).sum(2)
    inside = windows(torch.ones_like(query[:, :1])).bool()
    relation = (relation * head_channels**-0.5).masked_fill(~inside, float("-inf"))
    kernel = relation.softmax(2).unflatten(2, (kernel_size, kernel_size))
    return involution2d(value, kernel, 1, padding, dilation)
