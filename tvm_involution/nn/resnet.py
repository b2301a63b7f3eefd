# SPDX-License-Identifier: Apache-2.0
"""ResNet (arXiv 1512.03385), what RedNet is measured against; parameter names as torchvision's."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from ..arguments import Size, checked
from ..errors import UserError
from .bottleneck import ResidualBottleneck
from .rednet import STAGE_BLOCKS


class _Bottleneck(ResidualBottleneck):
    @staticmethod
    def spatial_layer(channels: int, stride: int, dilation: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)


class ResNet(nn.Module):
    """A whole ResNet classifier: (N, 3, H, W) -> logits (N, num_classes).

    Args:
        depth: 26, 38, 50, 101 or 152 (the depths of RedNet).

    Raises:
        UserError: unknown depth.
    """

    bottleneck: ClassVar[type[ResidualBottleneck]] = _Bottleneck
    """what the stages are made of"""

    @checked
    def __init__(self, depth: int = 50, num_classes: Size = 1000) -> None:
        super().__init__()
        if depth not in STAGE_BLOCKS:
            raise UserError(f"no ResNet of depth {depth}; expected one of {', '.join(map(str, STAGE_BLOCKS))}")
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for index, blocks in enumerate(STAGE_BLOCKS[depth]):
            out_channels, stride = 256 * 2**index, 1 if index == 0 else 2
            self.add_module(f"layer{index + 1}", self.bottleneck.make_stage(blocks, channels, out_channels, stride))
            channels = out_channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(1, 5):
            x = getattr(self, f"layer{index}")(x)
        return self.fc(self.avgpool(x).flatten(1))
