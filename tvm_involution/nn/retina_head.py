# SPDX-License-Identifier: Apache-2.0
"""The head of RetinaNet (arXiv 1708.02002), with the names of mmdet's RetinaHead."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .anchors import base_anchors, grid_anchors
from .box_coder import decode_boxes
from .conv_module import ConvModule
from .detections import gather_boxes, sort_descending


class RetinaHead(nn.Module):
    """Scores of every class and four deltas for each of the nine anchors of a pixel, by the same layers on every level.

    Args:
        channels: of every level.
        strides: of the levels; anchors have 4, 5.04 and 6.35 times these sides.
        max_per_level: anchors of a level that are looked at, those with the best score of a class.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        num_layers: int = 4,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        max_per_level: int = 1000,
    ) -> None:
        super().__init__()
        self.num_classes, self.strides, self.max_per_level = num_classes, tuple(strides), max_per_level
        self.ratios, self.scales = tuple(ratios), tuple(4 * 2 ** (i / 3) for i in range(3))
        anchors = len(self.ratios) * len(self.scales)

        def tower() -> nn.ModuleList:
            return nn.ModuleList(ConvModule(channels, channels, 3, padding=1, norm=False) for _ in range(num_layers))

        self.cls_convs, self.reg_convs = tower(), tower()
        self.retina_cls = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.retina_reg = nn.Conv2d(channels, anchors * 4, 3, padding=1)

    def forward(self, features: Sequence[Tensor], image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Levels (N, channels, H_i, W_i) -> boxes (N, K, 4) in pixels and scores (N, K, num_classes)."""
        boxes, scores = [], []
        for x, stride in zip(features, self.strides, strict=True):
            level_scores, deltas = self._predict(x)
            anchors = grid_anchors(base_anchors(stride, self.scales, self.ratios), x.shape[2:], stride).to(x)
            anchors = anchors.expand(x.shape[0], -1, -1)
            if anchors.shape[1] > self.max_per_level:
                best = sort_descending(level_scores.amax(2))[1][:, : self.max_per_level]
                level_scores = level_scores.gather(1, best[..., None].expand(-1, -1, self.num_classes))
                anchors, deltas = gather_boxes(anchors, best), gather_boxes(deltas, best)
            boxes.append(decode_boxes(anchors, deltas, image_size))
            scores.append(level_scores)
        return torch.cat(boxes, 1), torch.cat(scores, 1)

    def _predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, channels, H, W) -> scores (N, anchors, num_classes), deltas (N, anchors, 4)."""
        classes = boxes = x
        for cls_conv, reg_conv in zip(self.cls_convs, self.reg_convs, strict=True):
            classes, boxes = cls_conv(classes), reg_conv(boxes)
        scores = self.retina_cls(classes).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.num_classes)
        return scores.sigmoid(), self.retina_reg(boxes).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
