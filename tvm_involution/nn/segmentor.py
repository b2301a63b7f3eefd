# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation networks: what joins backbone, neck and head (mmseg's EncoderDecoder).

Configurations: seg/configs/_base_/models of d-li14/involution.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import checked
from .backbones import CHANNELS, build_backbone
from .fcn_head import FCNHead
from .fpn import NECKS
from .resize import resize
from .semantic_fpn_head import SemanticFPNHead
from .uper_head import UPerHead


class Segmentor(nn.Module):
    """(N, 3, H, W) -> logits (N, num_classes, H, W). Without a `neck` the head takes the backbone's maps."""

    @checked
    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        decode_head: nn.Module,
        auxiliary_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.decode_head = decode_head
        self.auxiliary_head = auxiliary_head

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, upsampled to the size of `x`."""
        features = self.backbone(x)
        if self.neck is not None:
            features = self.neck(features)
        return resize(self.decode_head(features), x.shape[2:])


def semantic_fpn(neck: str, num_classes: int, backbone: str = "rednet") -> Segmentor:
    """Return Semantic FPN; `neck` is `convolution` or `involution`, see `build_backbone`."""
    head = SemanticFPNHead(256, 128, num_classes)
    return Segmentor(build_backbone(backbone), NECKS[neck](CHANNELS, 256, 4), head)


def upernet(num_classes: int, backbone: str = "rednet") -> Segmentor:
    """Return UPerNet, see `build_backbone`."""
    auxiliary = FCNHead(1024, 256, num_classes)
    return Segmentor(build_backbone(backbone), None, UPerHead(CHANNELS, 512, num_classes), auxiliary)
