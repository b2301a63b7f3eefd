# SPDX-License-Identifier: Apache-2.0
"""Convolution, batch norm and ReLU under the names that mmcv's ConvModule gives them."""

from __future__ import annotations

from torch import Tensor, nn

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class ConvModule(nn.Module):
    """`conv`, then `bn` and `activate` where wanted; the convolution has a bias only without a norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
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
