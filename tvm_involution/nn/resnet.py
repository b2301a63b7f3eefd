# SPDX-License-Identifier: Apache-2.0
"""ResNet (arXiv 1512.03385), what RedNet is measured against; parameter names as torchvision's and OpenMMLab's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ..arguments import Count, Size, checked
from ..errors import UserError
from .bottleneck import ResidualBottleneck
from .rednet import STAGE_BLOCKS


class _Bottleneck(ResidualBottleneck):
    @staticmethod
    def spatial_layer(channels: int, stride: int, dilation: int) -> nn.Module:
        return nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)


def _norm_and_relu(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)


class ResNetBackbone(nn.Module):
    """The backbone: (N, 3, H, W) -> a map of each stage of `out_indices`; names as in mmdet's and mmseg's ResNet.

    Args:
        depth: 26, 38, 50, 101 or 152 (the depths of RedNet).
        deep_stem: begin with three 3x3 convolutions (mmseg's ResNetV1c) instead of a 7x7 one.
        out_indices: stages, from 0, whose outputs are returned.

    Raises:
        UserError: unknown depth or stages.
    """

    bottleneck: ClassVar[type[ResidualBottleneck]] = _Bottleneck
    """what the stages are made of"""

    @checked
    def __init__(self, depth: int = 50, *, deep_stem: bool = False, out_indices: Sequence[Count] = (3,)) -> None:
        super().__init__()
        if depth not in STAGE_BLOCKS:
            raise UserError(f"no ResNet of depth {depth}; expected one of {', '.join(map(str, STAGE_BLOCKS))}")
        stages = range(len(STAGE_BLOCKS[depth]))
        if not out_indices or not set(out_indices) <= set(stages):
            raise UserError(f"out_indices={tuple(out_indices)}; expected stages from 0 to {stages[-1]}")
        self.out_indices = tuple(out_indices)
        self.deep_stem = deep_stem
        if deep_stem:
            layers = [(3, 32, 2), (32, 32, 1), (32, 64, 1)]
            self.stem = nn.Sequential(*(part for layer in layers for part in _norm_and_relu(*layer)))
        else:
            self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for index, blocks in zip(stages, STAGE_BLOCKS[depth], strict=True):
            out_channels, stride = 256 * 2**index, 1 if index == 0 else 2
            self.add_module(f"layer{index + 1}", self.bottleneck.make_stage(blocks, channels, out_channels, stride))
            channels = out_channels
        self.out_channels = channels

    def forward(self, x: Tensor) -> Any:
        """Return the maps as a tuple, each half as high and wide as the one before it."""
        x = self.maxpool(self.stem(x) if self.deep_stem else self.relu(self.bn1(self.conv1(x))))
        maps = []
        for index in range(max(self.out_indices) + 1):
            x = getattr(self, f"layer{index + 1}")(x)
            if index in self.out_indices:
                maps.append(x)
        return tuple(maps)


class ResNet(ResNetBackbone):
    """A whole ResNet classifier: (N, 3, H, W) -> logits (N, num_classes); names as torchvision's.

    Args:
        depth: 26, 38, 50, 101 or 152 (the depths of RedNet).

    Raises:
        UserError: unknown depth.
    """

    @checked
    def __init__(self, depth: int = 50, num_classes: Size = 1000) -> None:
        super().__init__(depth)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        return self.fc(self.avgpool(super().forward(x)[-1]).flatten(1))
