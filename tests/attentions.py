# SPDX-License-Identifier: Apache-2.0
"""Local attention by torch's attention of all pixels to all, masked: it knows no windows and no involution."""

from __future__ import annotations

import itertools

import numpy as np
import torch

BORDERS = ("masked", "shifted", "zeros")


def seen_along(size: int, taps: int, dilation: int, border: str) -> list[list[int]]:
    """Return which pixels the window of each pixel sees along an axis; below 0 and from `size` are outside."""
    if border != "shifted":
        return [[i + (t - taps // 2) * dilation for t in range(taps)] for i in range(size)]
    windows = []
    for i in range(size):
        neighbours = list(range(i % dilation, size, dilation))
        first = min(max(neighbours.index(i) - taps // 2, 0), len(neighbours) - taps)
        windows.append(neighbours[first : first + taps])
    return windows


def full_attention(
    query, key, value, kernel_size, num_heads, dilation, scale=None, bias=None, embedding=None, border="masked"
) -> np.ndarray:
    """Arrays as of `nn.local_attention2d`, kernel_size and dilation pairs; float64 (N, CV, H, W)."""
    query, key, value = (torch.from_numpy(np.asarray(x, np.float64)) for x in (query, key, value))
    n, channels, height, width = query.shape
    reach = [taps // 2 * step for taps, step in zip(kernel_size, dilation, strict=True)]
    scale = (channels // num_heads) ** -0.5 if scale is None else scale
    around = [reach[1], reach[1], reach[0], reach[0]]
    heads, seen = [], [torch.nn.functional.pad(x, around) for x in (key, value)]
    padded = seen[0].shape[2:]
    for x in (query, *seen):
        heads.append(x.unflatten(1, (num_heads, -1)).flatten(3).transpose(2, 3))
    mask = torch.full((n, num_heads, height * width, padded.numel()), float("-inf"), dtype=torch.float64)
    sizes = (height, width)
    rows, columns = (seen_along(*each, border) for each in zip(sizes, kernel_size, dilation, strict=True))
    for i, j in np.ndindex(height, width):
        for (u, row), (v, column) in itertools.product(enumerate(rows[i]), enumerate(columns[j])):
            if border == "masked" and not (0 <= row < height and 0 <= column < width):
                continue
            added = torch.zeros(n, num_heads, dtype=torch.float64)
            if bias is not None:
                at = (u, v)
                if border == "shifted":
                    at = tuple(
                        (there - here) // step + taps - 1
                        for there, here, step, taps in zip((row, column), (i, j), dilation, kernel_size, strict=True)
                    )
                added = added + torch.from_numpy(np.asarray(bias, np.float64))[:, at[0], at[1]]
            if embedding is not None:
                vector = torch.from_numpy(np.asarray(embedding, np.float64))[:, u, v].view(num_heads, -1)
                added = added + (query[:, :, i, j].unflatten(1, (num_heads, -1)) * vector).sum(2) * scale
            token = (row + reach[0]) * padded[1] + column + reach[1]
            mask[:, :, i * width + j, token] = added
    full = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale)
    return full.transpose(2, 3).reshape(value.shape).numpy()
