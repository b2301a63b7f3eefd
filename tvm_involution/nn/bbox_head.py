# SPDX-License-Identifier: Apache-2.0
"""The box head of Faster R-CNN, with the names of mmdet's Shared2FCBBoxHead."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .box_coder import decode_boxes

_STDS = (0.1, 0.1, 0.2, 0.2)


class BBoxHead(nn.Module):
    """Two linear layers over a region's cells, then class scores and four deltas for each class.

    Args:
        channels: C of the pooled regions.
        output_size: S, their rows and columns.
        num_classes: without the background, which is the last logit.
    """

    def __init__(
        self, num_classes: int, channels: int = 256, output_size: int = 7, hidden_channels: int = 1024
    ) -> None:
        super().__init__()
        self.num_classes, self.output_size = num_classes, output_size
        self.shared_fcs = nn.ModuleList(
            [nn.Linear(channels * output_size**2, hidden_channels), nn.Linear(hidden_channels, hidden_channels)]
        )
        self.fc_cls = nn.Linear(hidden_channels, num_classes + 1)
        self.fc_reg = nn.Linear(hidden_channels, num_classes * 4)

    def forward(self, regions: Tensor, proposals: Tensor, image_size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Score and refine the proposals.

        Args:
            regions: (N * R, C, S, S).
            proposals: (N, R, 4), (x1, y1, x2, y2) in pixels.

        Returns:
            boxes (N, R, num_classes, 4) and scores (N, R, num_classes); the scores of a proposal without area are 0,
            as there is none.
        """
        x = regions.flatten(1)
        for layer in self.shared_fcs:
            x = F.relu(layer(x))
        count = proposals.shape[:2]
        scores = self.fc_cls(x).softmax(1)[:, :-1].reshape(*count, self.num_classes)
        deltas = self.fc_reg(x).reshape(*count, self.num_classes, 4)
        boxes = decode_boxes(proposals[:, :, None], deltas, image_size, _STDS)
        present = (proposals != 0).any(2, keepdim=True)
        return boxes, scores * present.to(scores.dtype)
