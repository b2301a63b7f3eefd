# SPDX-License-Identifier: Apache-2.0
"""The bottleneck that RedNet and ResNet share; they differ in the layer in its middle."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Size, checked


class ResidualBottleneck(nn.Module):
    """1x1 convolution, `spatial_layer`, 1x1 convolution, each with batch norm, around an identity."""

    expansion = 4

    @checked
    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        stride: Size = 1,
        dilation: Size = 1,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        mid_channels = out_channels // self.expansion
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = self.spatial_layer(mid_channels, stride, dilation)
        self.bn2 = nn.BatchNorm2d(mid_channels)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @staticmethod
    def spatial_layer(channels: int, stride: int, dilation: int) -> nn.Module:
        """Return the layer in the middle."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride))."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + identity)

    @classmethod
    def make_stage(
        cls, blocks: int, in_channels: int, out_channels: int, stride: int, dilation: int = 1
    ) -> nn.Sequential:
        """Return `blocks` of them; the first strides, and projects its identity where shapes differ."""
        downsample = None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        first = cls(in_channels, out_channels, stride, dilation, downsample)
        rest = [cls(out_channels, out_channels, 1, dilation) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)
