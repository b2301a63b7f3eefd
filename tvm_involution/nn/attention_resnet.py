# SPDX-License-Identifier: Apache-2.0
"""ResNet whose 3x3 convolutions are local self-attention: stand-alone self-attention (arXiv 1906.05909)."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from .attention import LocalAttention2d
from .bottleneck import ResidualBottleneck
from .resnet import ResNet

_WINDOW, _HEADS = 7, 8


class _Bottleneck(ResidualBottleneck):
    @staticmethod
    def spatial_layer(channels: int, stride: int, dilation: int) -> nn.Module:
        attention = LocalAttention2d(channels, _WINDOW, _HEADS, dilation=dilation)
        if stride == 1:
            return attention
        # a window cut by the border averages what is inside: odd sizes get that of the strided identity
        return nn.Sequential(attention, nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))


class AttentionResNet(ResNet):
    """ResNet of the paper's variant that keeps the stem by convolution: (N, 3, H, W) -> logits (N, num_classes).

    Attention over 7x7 with 8 heads and relative positions, scores divided by the root of a head's channels; where the
    convolution had a stride of 2, average pooling follows.

    Args:
        depth: 26, 38, 50, 101 or 152.

    Raises:
        UserError: unknown depth.
    """

    bottleneck: ClassVar[type[ResidualBottleneck]] = _Bottleneck
