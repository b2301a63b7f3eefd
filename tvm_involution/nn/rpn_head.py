# SPDX-License-Identifier: Apache-2.0
"""Region proposal networks (arXiv 1506.01497), with the names of mmdet's RPNHead and of rpn_head_involution.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .anchors import base_anchors, grid_anchors
from .box_coder import decode_boxes
from .detections import gather_boxes, sort_descending
from .involution import Involution2d
from .nms import nms


class RPNHead(nn.Module):
    """A score and four deltas for each anchor; the best boxes after suppression are the proposals.

    Args:
        channels: of every level.
        strides: of the levels; anchors have 8 times these sides.
        ratios: of the anchors, height to width.
        max_per_level: anchors of a level that are looked at, the best ones.
        max_proposals: R, proposals an image.
        iou_threshold: of the suppression, which leaves levels apart.
    """

    def __init__(
        self,
        channels: int = 256,
        strides: Sequence[int] = (4, 8, 16, 32, 64),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        max_per_level: int = 1000,
        max_proposals: int = 1000,
        iou_threshold: float = 0.7,
    ) -> None:
        super().__init__()
        self.strides, self.ratios = tuple(strides), tuple(ratios)
        self.max_per_level, self.max_proposals, self.iou_threshold = max_per_level, max_proposals, iou_threshold
        self.rpn_conv = self.spatial_layer(channels)
        self.rpn_cls = nn.Conv2d(channels, len(ratios), 1)
        self.rpn_reg = nn.Conv2d(channels, len(ratios) * 4, 1)

    @staticmethod
    def spatial_layer(channels: int) -> nn.Module:
        """Return the layer that looks around each pixel."""
        return nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> Tensor:
        """Levels (N, channels, H_i, W_i) -> proposals (N, R, 4), by falling score, missing ones 0."""
        boxes, scores, levels = [], [], []
        for level, (x, stride) in enumerate(zip(features, self.strides, strict=True)):
            x = F.relu(self.rpn_conv(x))
            score, order = sort_descending(self.rpn_cls(x).permute(0, 2, 3, 1).flatten(1).sigmoid())
            best = order[:, : self.max_per_level]
            deltas = self.rpn_reg(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
            anchors = grid_anchors(base_anchors(stride, [8.0], self.ratios), x.shape[2:], stride).to(x)
            anchors = anchors.expand(x.shape[0], -1, -1)
            boxes.append(decode_boxes(gather_boxes(anchors, best), gather_boxes(deltas, best), image_size))
            scores.append(score[:, : self.max_per_level])
            levels.append(torch.full_like(best, level))
        ordered, order = sort_descending(torch.cat(scores, 1))
        candidates = gather_boxes(torch.cat(boxes, 1), order)
        level_of = torch.cat(levels, 1).gather(1, order)
        kept = nms(candidates, ordered, level_of, -1.0, self.iou_threshold, self.max_proposals)
        found = kept >= 0
        return torch.where(found[..., None], gather_boxes(candidates, torch.where(found, kept, 0)), 0.0)


class InvolutionRPNHead(RPNHead):
    """An RPN that looks around by a 7x7 involution."""

    @staticmethod
    def spatial_layer(channels: int) -> nn.Module:
        """Return the involution."""
        return Involution2d(channels, 7)
