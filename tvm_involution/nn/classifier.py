# SPDX-License-Identifier: Apache-2.0
"""Backbone and linear head under OpenMMLab's names (cls/configs/_base_/models/rednet50.py)."""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import Size, checked
from .rednet import RedNet


class LinearClsHead(nn.Module):
    """One linear layer, `fc`."""

    @checked
    def __init__(self, in_channels: Size, num_classes: Size) -> None:
        super().__init__()
        self.fc = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels) -> logits (N, num_classes)."""
        return self.fc(x)


class ImageClassifier(nn.Module):
    """`backbone`, global average pooling, `head`: (N, 3, H, W) -> logits (N, num_classes)."""

    @checked
    def __init__(self, backbone: RedNet, num_classes: Size) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = LinearClsHead(backbone.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes)."""
        return self.head(self.backbone(x).mean((2, 3)))
