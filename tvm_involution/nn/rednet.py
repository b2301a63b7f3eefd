# SPDX-License-Identifier: Apache-2.0
"""RedNet, the residual network of involutions (section 4 of arXiv 2103.06255).

Parameter names are those of cls/mmcls/models/backbones/rednet.py, so official checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..arguments import Count, Size, checked
from ..errors import UserError
from .bottleneck import ResidualBottleneck
from .conv_module import ConvModule
from .involution import Involution2d

STAGE_BLOCKS = {
    26: (1, 2, 4, 1),
    38: (2, 3, 5, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class Bottleneck(ResidualBottleneck):
    """A bottleneck with a 7x7 involution in its middle."""

    @staticmethod
    def spatial_layer(channels: int, stride: int, dilation: int) -> nn.Module:
        """Return the involution."""
        return Involution2d(channels, 7, stride, dilation=dilation)


class RedNet(nn.Module):
    """The backbone.

    Args:
        depth: 26, 38, 50, 101 or 152; or None with `stage_blocks`.
        stage_blocks: blocks of each stage.
        stem_channels: channels after the stem; half of them inside it.
        stem_kernel_size: of the stem's involution; 3 for classification, 7 for detection and segmentation.
        base_channels: the first stage's bottleneck width; each stage doubles it.
        in_channels: of the image.
        strides, dilations: of the first block, and of every involution, of each stage.
        out_indices: stages, from 0, whose outputs are returned.

    `out_channels` has the channels of the last stage that is returned.

    Raises:
        UserError: unknown depth, or stages that do not match strides, dilations and out_indices.
    """

    @checked
    def __init__(
        self,
        depth: int | None = 50,
        *,
        stage_blocks: Sequence[Size] | None = None,
        in_channels: Size = 3,
        stem_channels: Size = 64,
        stem_kernel_size: Size = 3,
        base_channels: Size = 64,
        strides: Sequence[Size] = (1, 2, 2, 2),
        dilations: Sequence[Size] = (1, 1, 1, 1),
        out_indices: Sequence[Count] = (3,),
    ) -> None:
        super().__init__()
        if stage_blocks is None:
            if depth not in STAGE_BLOCKS:
                raise UserError(f"no RedNet of depth {depth}; expected one of {', '.join(map(str, STAGE_BLOCKS))}")
            stage_blocks = STAGE_BLOCKS[depth]
        indices = range(len(stage_blocks))
        if (
            not len(indices) == len(strides) == len(dilations)
            or not out_indices
            or not set(out_indices) <= set(indices)
        ):
            raise UserError(
                f"stage_blocks {stage_blocks}, strides {strides}, dilations {dilations} and out_indices {out_indices} "
                "must speak of the same stages"
            )
        self.out_indices = tuple(out_indices)
        half = stem_channels // 2
        self.stem = nn.Sequential(
            ConvModule(in_channels, half, 3, stride=2, padding=1),
            Involution2d(half, stem_kernel_size, 1),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            ConvModule(half, stem_channels, 3, stride=1, padding=1),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, out_channels = stem_channels, base_channels * Bottleneck.expansion
        self.stages = []
        for index, (blocks, stride, dilation) in enumerate(zip(stage_blocks, strides, dilations, strict=True), 1):
            name = f"layer{index}"
            self.add_module(name, Bottleneck.make_stage(blocks, channels, out_channels, stride, dilation))
            self.stages.append(name)
            channels, out_channels = out_channels, out_channels * 2
        self.out_channels = base_channels * Bottleneck.expansion * 2 ** max(out_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(N, in_channels, H, W) -> the feature maps of `out_indices`, one alone not in a tuple."""
        x = self.maxpool(self.stem(x))
        outputs = []
        for index, name in enumerate(self.stages):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outputs.append(x)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
