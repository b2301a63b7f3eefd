# SPDX-License-Identifier: Apache-2.0
"""The head of Semantic FPN (arXiv 1901.02446), with the parameter names of mmseg's FPNHead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conv_module import ConvModule
from .resize import resize


class SemanticFPNHead(nn.Module):
    """Bring every level to the finest one's size by convolutions and upsampling, add them, and classify each pixel.

    Args:
        in_channels: of every level.
        channels: of the sum.
        num_classes: of the logits.
        strides: of the levels, finest first; each twice the one before.
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, strides: Sequence[int] = (4, 8, 16, 32)
    ) -> None:
        super().__init__()
        self.scale_heads = nn.ModuleList()
        for level in range(len(strides)):
            layers: list[nn.Module] = []
            for step in range(max(1, level)):
                layers.append(ConvModule(in_channels if step == 0 else channels, channels, 3, padding=1))
                if level > 0:
                    layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.scale_heads.append(nn.Sequential(*layers))
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Levels (N, in_channels, H_i, W_i) -> logits (N, num_classes, H_0, W_0)."""
        levels = [head(x) for head, x in zip(self.scale_heads, inputs, strict=True)]
        size = levels[0].shape[2:]
        return self.conv_seg(torch.stack([resize(level, size) for level in levels]).sum(0))
