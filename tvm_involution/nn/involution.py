# SPDX-License-Identifier: Apache-2.0
"""The involution layer, with the parameter names of cls/mmcls/models/utils/involution_naive.py."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Size, checked
from ..errors import UserError
from .conv_module import ConvModule
from .ops import involution2d


class Involution2d(nn.Module):
    """Generate a kernel from every pixel and aggregate the pixel's window with it (section 3 of arXiv 2103.06255).

    Args:
        channels: C, a multiple of `group_channels` and of `reduction_ratio`.
        kernel_size: K, odd, or even with an even dilation: the window must have its pixel in the middle.
        group_channels: channels that share a kernel.
        reduction_ratio: the generator's bottleneck has C / reduction_ratio channels.

    Raises:
        UserError: channels that do not divide, or a window without a middle.
    """

    @checked
    def __init__(
        self,
        channels: Size,
        kernel_size: Size = 7,
        stride: Size = 1,
        group_channels: Size = 16,
        reduction_ratio: Size = 4,
        dilation: Size = 1,
    ) -> None:
        super().__init__()
        if channels % group_channels or channels % reduction_ratio:
            raise UserError(
                f"{channels} channels must be a multiple of group_channels={group_channels} and of "
                f"reduction_ratio={reduction_ratio}"
            )
        if dilation * (kernel_size - 1) % 2:
            raise UserError(
                f"kernel_size={kernel_size} with dilation={dilation} has no pixel in the middle; use an odd kernel_size"
            )
        self.channels = channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.groups = channels // group_channels
        self.conv1 = ConvModule(channels, channels // reduction_ratio, 1)
        self.conv2 = ConvModule(channels // reduction_ratio, kernel_size**2 * self.groups, 1, norm=False, act=False)
        # windows cut by the border average what is inside: the official AvgPool2d where the stride divides the size,
        # and odd sizes, on which the official module fails, get the size that the aggregation has
        self.avgpool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False) if stride > 1 else None

    def generate_kernel(self, x: Tensor) -> Tensor:
        """Return the kernels (N, G, K, K, OH, OW) of x (N, C, H, W)."""
        weight = self.conv2(self.conv1(x if self.avgpool is None else self.avgpool(x)))
        n, _, height, width = weight.shape
        return weight.view(n, self.groups, self.kernel_size, self.kernel_size, height, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, ceil(H / stride), ceil(W / stride))."""
        padding = self.dilation * (self.kernel_size - 1) // 2
        return involution2d(x, self.generate_kernel(x), self.stride, padding, self.dilation)

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"{self.channels}, kernel_size={self.kernel_size}, stride={self.stride}, groups={self.groups}"
