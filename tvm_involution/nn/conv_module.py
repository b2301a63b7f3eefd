# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and ReLU under the names that mmcv's ConvModule gives them."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Count, Size, checked

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


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
        axes: int = 2,
    ) -> None:
        super().__init__()
        self.conv = _CONVOLUTIONS[axes](in_channels, out_channels, kernel_size, stride, padding, bias=not norm)
        if norm:
            self.bn = _NORMS[axes](out_channels)
        if act:
            self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, *size) -> (N, out_channels, *out_size), of `axes` sizes."""
        for part in self.children():
            x = part(x)
        return x
