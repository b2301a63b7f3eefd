# SPDX-License-Identifier: Apache-2.0
"""Semantic segmentation networks: what joins backbone, neck and head (mmseg's EncoderDecoder).

Configurations: seg/configs/_base_/models of d-li14/involution.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..arguments import checked
from .fcn_head import FCNHead
from .fpn import NECKS
from .rednet import RedNet
from .resize import resize
from .semantic_fpn_head import SemanticFPNHead
from .uper_head import UPerHead

BACKBONE_CHANNELS = (256, 512, 1024, 2048)


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


def semantic_fpn(neck: str, num_classes: int) -> Segmentor:
    """Return Semantic FPN over RedNet-50; `neck` is `convolution` or `involution`."""
    return Segmentor(
        RedNet(50, stem_kernel_size=7, out_indices=(0, 1, 2, 3)),
        NECKS[neck](BACKBONE_CHANNELS, 256, 4),
        SemanticFPNHead(256, 128, num_classes),
    )


def upernet(num_classes: int) -> Segmentor:
    """Return UPerNet over RedNet-50."""
    return Segmentor(
        RedNet(50, stem_kernel_size=7, out_indices=(0, 1, 2, 3)),
        None,
        UPerHead(BACKBONE_CHANNELS, 512, num_classes),
        FCNHead(1024, 256, num_classes),
    )
