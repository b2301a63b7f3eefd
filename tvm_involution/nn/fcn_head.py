# SPDX-License-Identifier: Apache-2.0
"""The auxiliary head that trains UPerNet (arXiv 1411.4038), with the parameter names of mmseg's FCNHead."""

from __future__ import annotations

from torch import Tensor, nn

from .conv_module import ConvModule


class FCNHead(nn.Module):
    """One 3x3 convolution, then a classifier of each pixel. Inference goes without it; checkpoints carry it."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(ConvModule(in_channels, channels, 3, padding=1))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> logits (N, num_classes, H, W)."""
        return self.conv_seg(self.convs(x))
