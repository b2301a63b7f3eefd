# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as it has been written: each form takes queries, keys (2, 8, 6, 7) and values (2, 4, 6, 7).

2 heads, windows of 3x3. Each says what it is: border, and whether there are a bias or an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

N, C, CV, H, W = 2, 8, 4, 6, 7
HEADS, K, KK = 2, 3, 9
BIAS = torch.randn(HEADS, KK, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(C // 2, 1, 1, 3, 1, generator=torch.Generator().manual_seed(1))
COLUMNS = torch.randn(C // 2, 1, 1, 1, 3, generator=torch.Generator().manual_seed(2))
INSIDE = F.unfold(torch.ones(1, 1, H, W), K, padding=1).view(1, 1, KK, H * W) > 0


def windows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, heads, C/heads, KK, H*W)."""
    return F.unfold(x, K, padding=1).view(N, HEADS, x.shape[1] // HEADS, KK, H * W)


def pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, heads, C/heads, 1, H*W)."""
    return x.view(N, HEADS, -1, 1, H * W)


def plain(q, k, v):
    weights = (pixels(q) * windows(k)).sum(2).softmax(2)
    return (weights.unsqueeze(2) * windows(v)).sum(3).view(N, CV, H, W)


def scaled(q, k, v):
    weights = F.softmax((pixels(q * 0.5) * windows(k)).sum(2, keepdim=True), 3)
    return (weights * windows(v)).sum(3).reshape(N, CV, H, W)


def masked(q, k, v):
    scores = (pixels(q) * windows(k)).sum(2) / 2
    weights = scores.masked_fill(~INSIDE, float("-inf")).softmax(2)
    return (weights.unsqueeze(2) * windows(v)).sum(3).view(N, CV, H, W)


def masked_by_addition(q, k, v):
    mask = torch.zeros(INSIDE.shape, dtype=q.dtype).masked_fill(~INSIDE, float("-inf"))
    weights = ((pixels(q) * windows(k)).sum(2) * 0.7 + mask).softmax(2)
    return (weights.unsqueeze(2) * windows(v)).sum(3).view(N, CV, H, W)


def masked_by_unfolded_ones(q, k, v):
    inside = F.unfold(torch.ones_like(q[:, :1]), K, padding=1).view(N, 1, KK, H * W)
    scores = torch.where(inside > 0, (pixels(q) * windows(k)).sum(2), float("-inf"))
    return (scores.softmax(2).unsqueeze(2) * windows(v)).sum(3).view(N, CV, H, W)


def einsum(q, k, v):
    scores = torch.einsum("nhcp,nhcwp->nhwp", q.view(N, HEADS, -1, H * W), windows(k))
    return torch.einsum("nhwp,nhcwp->nhcp", scores.softmax(2), windows(v)).reshape(N, CV, H, W)


def matmul(q, k, v):
    """(N, heads, H*W, 1, C/heads) @ (N, heads, H*W, C/heads, KK), twice."""
    query = q.view(N, HEADS, -1, H * W).permute(0, 1, 3, 2).unsqueeze(3)
    weights = (query @ windows(k).permute(0, 1, 4, 2, 3) * 0.5).softmax(-1)
    out = weights @ windows(v).permute(0, 1, 4, 3, 2)
    return out.squeeze(3).permute(0, 1, 3, 2).reshape(N, CV, H, W)


def bias(q, k, v):
    scores = (pixels(q) * windows(k)).sum(2) * 0.5 + BIAS.to(q.dtype).view(1, HEADS, KK, 1)
    return (scores.softmax(2).unsqueeze(2) * windows(v)).sum(3).view(N, CV, H, W)


def embedding(q, k, v):
    """As of a well-known module after arXiv 1906.05909: padded, unfolded twice, rows and columns added to halves."""
    keys, values = (F.pad(x, (1, 1, 1, 1)).unfold(2, K, 1).unfold(3, K, 1) for x in (k, v))
    by_row, by_column = keys.split(C // 2, 1)
    keys = torch.cat((by_row + ROWS.to(q.dtype), by_column + COLUMNS.to(q.dtype)), 1)
    keys = keys.contiguous().view(N, HEADS, C // HEADS, H, W, -1)
    values = values.contiguous().view(N, HEADS, CV // HEADS, H, W, -1)
    query = q.view(N, HEADS, C // HEADS, H, W, 1)
    weights = F.softmax((query * keys).sum(2, keepdim=True), -1)
    return (weights * values).sum(-1).view(N, -1, H, W)


# name: function, border, has a bias, has an embedding
FORMS = {
    "plain": (plain, "zeros", False, False),
    "scaled": (scaled, "zeros", False, False),
    "masked": (masked, "masked", False, False),
    "masked by addition": (masked_by_addition, "masked", False, False),
    "masked by unfolded ones": (masked_by_unfolded_ones, "masked", False, False),
    "einsum": (einsum, "zeros", False, False),
    "matmul": (matmul, "zeros", False, False),
    "bias": (bias, "zeros", True, False),
    "embedding": (embedding, "zeros", False, True),
}
