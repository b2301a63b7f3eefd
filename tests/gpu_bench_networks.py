# SPDX-License-Identifier: Apache-2.0
"""A network for the GPU benchmark's test, named as `gpu_bench_networks:small_network`."""

from __future__ import annotations

import torch
from torch import nn

from tvm_involution.nn import Involution2d
from tvm_involution.nn.conv_module import ConvModule


def small_network() -> nn.Module:
    """(N, 3, H, W) -> (N, 5): a convolution, two involutions, a linear layer; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Sequential(
            ConvModule(3, 16, 3, 2, 1),
            Involution2d(16, 3, 1, group_channels=8),
            nn.ReLU(),
            Involution2d(16, 7, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        ).eval()
