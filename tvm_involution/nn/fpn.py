# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid networks (arXiv 1612.03144), their output layers by convolution or by involution.

Parameter names are those of mmdet's FPN and of det/mmdet/models/necks/fpn_involution.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import Count, Size, checked
from ..errors import UserError
from .conv_module import ConvModule
from .involution import Involution2d


class FPN(nn.Module):
    """1x1 convolutions to one width, a top-down path, and an output layer for each level.

    Args:
        in_channels: of the backbone's feature maps, finest first.
        out_channels: of every output.
        num_outs: number of outputs; those beyond the backbone's levels are coarser by two each.
        start_level: the first of the backbone's feature maps that is used.
        extra_convs_on_input: make the extra levels by strided convolutions of the backbone's last feature map
            (RetinaNet) instead of subsampling the last output (Faster R-CNN).

    Raises:
        UserError: fewer outputs than feature maps.
    """

    @checked
    def __init__(
        self,
        in_channels: Sequence[Size],
        out_channels: Size,
        num_outs: Size,
        start_level: Count = 0,
        extra_convs_on_input: bool = False,
    ) -> None:
        super().__init__()
        used = in_channels[start_level:]
        extra_levels = num_outs - len(used)
        if extra_levels < 0:
            raise UserError(
                f"an FPN over {len(used)} feature maps has at least as many outputs, got num_outs={num_outs}"
            )
        self.start_level = start_level
        self.subsampled_levels = 0 if extra_convs_on_input else extra_levels
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1, norm=False, act=False) for c in used)
        self.fpn_convs = nn.ModuleList(self.output_layer(out_channels) for _ in used)
        if extra_convs_on_input:
            for level in range(extra_levels):
                channels = used[-1] if level == 0 else out_channels
                self.fpn_convs.append(ConvModule(channels, out_channels, 3, 2, 1, norm=False, act=False))

    @staticmethod
    def output_layer(channels: int) -> nn.Module:
        """Return the layer that a level goes through last."""
        return ConvModule(channels, channels, 3, padding=1, norm=False, act=False)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Backbone's feature maps (N, in_channels[i], H_i, W_i) -> `num_outs` maps (N, out_channels, ...)."""
        used = inputs[self.start_level :]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, used, strict=True)]
        for level in range(len(laterals) - 1, 0, -1):
            finer = laterals[level - 1]
            laterals[level - 1] = finer + F.interpolate(laterals[level], size=finer.shape[2:], mode="nearest")
        outputs = [conv(x) for conv, x in zip(self.fpn_convs, laterals, strict=False)]
        source = used[-1]
        for conv in self.fpn_convs[len(laterals) :]:
            outputs.append(source := conv(source))
        for _ in range(self.subsampled_levels):
            outputs.append(F.max_pool2d(outputs[-1], 1, stride=2))
        return tuple(outputs)


class InvolutionFPN(FPN):
    """An FPN whose output layers are 7x7 involutions; extra levels stay convolutions, as in the official code."""

    @staticmethod
    def output_layer(channels: int) -> nn.Module:
        """Return the involution."""
        return Involution2d(channels, 7)


# `neck` in models/*.toml
NECKS: dict[str, type[FPN]] = {"convolution": FPN, "involution": InvolutionFPN}
