# SPDX-License-Identifier: Apache-2.0
"""The mask head of Mask R-CNN (arXiv 1703.06870), with the names of mmdet's FCNMaskHead and its involution form."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .conv_module import ConvModule
from .involution import Involution2d


class MaskHead(nn.Module):
    """Four layers over a region's cells, a transposed convolution to twice the size, and a mask for each class."""

    def __init__(self, num_classes: int, channels: int = 256, output_size: int = 14, num_layers: int = 4) -> None:
        super().__init__()
        self.output_size = output_size
        self.convs = nn.ModuleList(self.spatial_layer(channels) for _ in range(num_layers))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    @staticmethod
    def spatial_layer(channels: int) -> nn.Module:
        """Return a layer with its ReLU."""
        return ConvModule(channels, channels, 3, padding=1, norm=False)

    def forward(self, regions: Tensor, labels: Tensor) -> Tensor:
        """Regions (N * M, C, S, S) and their labels (N, M) -> probabilities (N, M, 2 * S, 2 * S) of those classes."""
        x = regions
        for layer in self.convs:
            x = layer(x)
        logits = self.conv_logits(F.relu(self.upsample(x)))
        index = labels.reshape(-1, 1, 1, 1).expand(-1, 1, *logits.shape[2:])
        return logits.gather(1, index).sigmoid().reshape(*labels.shape, *logits.shape[2:])


class InvolutionMaskHead(MaskHead):
    """A mask head of 7x7 involutions."""

    @staticmethod
    def spatial_layer(channels: int) -> nn.Module:
        """Return an involution with its ReLU."""
        return nn.Sequential(Involution2d(channels, 7), nn.ReLU(inplace=True))
