# SPDX-License-Identifier: Apache-2.0
"""The involution layers, with the parameter names of cls/mmcls/models/utils/involution_naive.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ..arguments import Size, checked
from ..errors import UserError
from .conv_module import ConvModule
from .ops import involution1d, involution2d, involution3d

_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
_AGGREGATE = {1: involution1d, 2: involution2d, 3: involution3d}


class Involution(nn.Module):
    """What `Involution1d`, `Involution2d` and `Involution3d` share; `axes` is the number of their spatial axes."""

    axes: ClassVar[int]

    @checked
    def __init__(
        self,
        channels: Size,
        kernel_size: Size | Sequence[Size] = 7,
        stride: Size | Sequence[Size] = 1,
        group_channels: Size = 16,
        reduction_ratio: Size = 4,
        dilation: Size | Sequence[Size] = 1,
    ) -> None:
        super().__init__()
        if channels % group_channels or channels % reduction_ratio:
            raise UserError(
                f"{channels} channels must be a multiple of group_channels={group_channels} and of "
                f"reduction_ratio={reduction_ratio}"
            )
        self.channels = channels
        self.kernel_size = self._per_axis("kernel_size", kernel_size)
        self.stride = self._per_axis("stride", stride)
        self.dilation = self._per_axis("dilation", dilation)
        reach = [step * (taps - 1) for step, taps in zip(self.dilation, self.kernel_size, strict=True)]
        if any(extent % 2 for extent in reach):
            raise UserError(
                f"kernel_size={kernel_size} with dilation={dilation} has no pixel in the middle; use an odd kernel_size"
            )
        self.padding = tuple(extent // 2 for extent in reach)
        self.groups = channels // group_channels
        hidden, taps = channels // reduction_ratio, math.prod(self.kernel_size)
        self.conv1 = ConvModule(channels, hidden, 1, axes=self.axes)
        self.conv2 = ConvModule(hidden, taps * self.groups, 1, norm=False, act=False, axes=self.axes)
        # windows cut by the border average what is inside: the official AvgPool2d where the stride divides the size,
        # and odd sizes, on which the official module fails, get the size that the aggregation has
        strided = max(self.stride) > 1
        self.avgpool = _POOLS[self.axes](self.stride, ceil_mode=True, count_include_pad=False) if strided else None

    def generate_kernel(self, x: Tensor) -> Tensor:
        """Return the kernels of x (N, C, *size): (N, G, *kernel_size, *out_size)."""
        weight = self.conv2(self.conv1(x if self.avgpool is None else self.avgpool(x)))
        return weight.view(weight.shape[0], self.groups, *self.kernel_size, *weight.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> (N, C, *out_size), along each axis ceil(size / stride)."""
        return _AGGREGATE[self.axes](x, self.generate_kernel(x), self.stride, self.padding, self.dilation)

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, groups={self.groups}"

    def _per_axis(self, name: str, value: int | Sequence[int]) -> tuple[int, ...]:
        values = (value,) * self.axes if isinstance(value, int) else tuple(value)
        if len(values) != self.axes or not all(isinstance(each, int) and each > 0 for each in values):
            raise UserError(f"{name} must be a positive int or {self.axes} of them, got {value!r}")
        return values


class Involution1d(Involution):
    """`Involution2d` along one axis, as of sound or spectra: (N, C, W) -> (N, C, ceil(W / stride))."""

    axes = 1


class Involution2d(Involution):
    """Generate a kernel from every pixel and aggregate the pixel's window with it (section 3 of arXiv 2103.06255).

    (N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride)).

    Args:
        channels: C, a multiple of `group_channels` and of `reduction_ratio`.
        kernel_size: K, odd, or even with an even dilation: the window must have its pixel in the middle. Int or one for
            each axis, as stride and dilation.
        group_channels: channels that share a kernel.
        reduction_ratio: the generator's bottleneck has C / reduction_ratio channels.

    Raises:
        UserError: channels that do not divide, or a window without a middle.
    """

    axes = 2


class Involution3d(Involution):
    """`Involution2d` along three axes, as of video, volumes or hyperspectral cubes: (N, C, D, H, W)."""

    axes = 3
