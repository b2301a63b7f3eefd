# SPDX-License-Identifier: Apache-2.0
"""The head of UPerNet (arXiv 1807.10221), with the parameter names of mmseg's UPerHead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .conv_module import ConvModule
from .resize import resize


class UPerHead(nn.Module):
    """Pyramid pooling of the coarsest feature map, an FPN below it, all levels joined, each pixel classified.

    Args:
        in_channels: of the backbone's feature maps, finest first.
        channels: of every level.
        num_classes: of the logits.
        pool_scales: rows and columns of the pooled maps.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_classes: int,
        pool_scales: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvModule(in_channels[-1], channels, 1))
            for scale in pool_scales
        )
        self.bottleneck = ConvModule(in_channels[-1] + len(pool_scales) * channels, channels, 3, padding=1)
        self.lateral_convs = nn.ModuleList(ConvModule(c, channels, 1) for c in in_channels[:-1])
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3, padding=1) for _ in in_channels[:-1])
        self.fpn_bottleneck = ConvModule(len(in_channels) * channels, channels, 3, padding=1)
        self.conv_seg = nn.Conv2d(channels, num_classes, 1)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Feature maps (N, in_channels[i], H_i, W_i) -> logits (N, num_classes, H_0, W_0)."""
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, inputs[:-1], strict=True)]
        laterals.append(self._pool_pyramid(inputs[-1]))
        for level in range(len(laterals) - 1, 0, -1):
            finer = laterals[level - 1]
            laterals[level - 1] = finer + resize(laterals[level], finer.shape[2:])
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)]
        outputs.append(laterals[-1])
        size = outputs[0].shape[2:]
        return self.conv_seg(self.fpn_bottleneck(torch.cat([resize(x, size) for x in outputs], 1)))

    def _pool_pyramid(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return self.bottleneck(torch.cat([x, *(resize(pool(x), size) for pool in self.psp_modules)], 1))
