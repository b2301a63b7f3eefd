# SPDX-License-Identifier: Apache-2.0
"""Bilinear resizing as mmseg does it: corners of pixels aligned, not their centres (`align_corners=False`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, H, W) -> (N, C, *size); `x` itself where it has that size already."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
