# SPDX-License-Identifier: Apache-2.0
"""A network small enough to tune in a test."""

from __future__ import annotations

import torch
from torch import nn

from tvm_involution.nn import Involution2d

SIZE = (14, 18)
"""height and width of its input (N, 8, H, W)"""


def small_network() -> nn.Module:
    """A 3x3 convolution, an involution and a 1x1 convolution; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), Involution2d(32, 3, 1), nn.Conv2d(32, 24, 1)
        ).eval()
