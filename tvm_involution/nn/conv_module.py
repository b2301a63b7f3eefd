# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and ReLU under the names that mmcv's ConvModule gives them."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Count, Size, checked


class ConvModule(nn.Module):
    """`conv`, then `bn` and `activate` where wanted; the convolution has a bias only without a norm."""

    @checked
    def __init__(
        self,
        in_channels: Size,
        out_channels: Size,
        kernel_size: Size,
        stride: Size = 1,
        padding: Count = 0,
        norm: bool = True,
        act: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(out_channels)
        if act:
            self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, OH, OW)."""
        for part in self.children():
            x = part(x)
        return x
