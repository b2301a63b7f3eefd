# SPDX-License-Identifier: Apache-2.0
"""Detection networks: what joins backbone, neck and heads (mmdet's TwoStageDetector and SingleStageDetector).

Configurations: det/configs/_base_/models of d-li14/involution. All of it is in the module, suppression included, with a
fixed number of detections, so that `torch.export` traces it whole.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..arguments import checked
from .backbones import CHANNELS, build_backbone
from .bbox_head import BBoxHead
from .detections import DetectionLimits, Detections, select_detections
from .fpn import NECKS
from .mask_head import InvolutionMaskHead, MaskHead
from .paste_masks import paste_masks
from .retina_head import RetinaHead
from .roi_align import assign_levels, roi_align
from .rpn_head import InvolutionRPNHead, RPNHead

_ROI_STRIDES = (4, 8, 16, 32)
# `head` in models/*.toml
_RPN_HEADS: dict[str, type[RPNHead]] = {"convolution": RPNHead, "involution": InvolutionRPNHead}
_MASK_HEADS: dict[str, type[MaskHead]] = {"convolution": MaskHead, "involution": InvolutionMaskHead}


class RoIHead(nn.Module):
    """Boxes and, with a `mask_head`, masks of proposals.

    Args:
        strides: of the levels that regions are read from, the first of those that `forward` gets.
    """

    def __init__(
        self,
        bbox_head: BBoxHead,
        mask_head: MaskHead | None = None,
        limits: DetectionLimits | None = None,
        strides: Sequence[int] = _ROI_STRIDES,
    ) -> None:
        super().__init__()
        self.bbox_head = bbox_head
        if mask_head is not None:
            self.mask_head = mask_head
        self.limits = limits or DetectionLimits()
        self.spatial_scales = tuple(1 / stride for stride in strides)

    def forward(self, features: Sequence[Tensor], proposals: Tensor, image_size: Sequence[int]) -> tuple[Tensor, ...]:
        """Return `Detections` and, where there is a head for them, masks (N, M, *image_size) bool."""
        regions = self._pool(features, proposals, self.bbox_head.output_size)
        boxes, scores = self.bbox_head(regions, proposals, image_size)
        found = select_detections(boxes, scores, self.limits)
        if not hasattr(self, "mask_head"):
            return tuple(found)
        cells = self.mask_head(self._pool(features, found.boxes, self.mask_head.output_size), found.labels)
        return (*found, paste_masks(cells, found.boxes, *image_size))

    def _pool(self, features: Sequence[Tensor], rois: Tensor, output_size: int) -> Tensor:
        used = features[: len(self.spatial_scales)]
        return roi_align(used, rois, assign_levels(rois, len(used)), output_size, self.spatial_scales)


class TwoStageDetector(nn.Module):
    """Faster or Mask R-CNN: (N, 3, H, W) -> boxes (N, M, 4), scores (N, M), labels (N, M), and masks (N, M, H, W)."""

    @checked
    def __init__(self, backbone: nn.Module, neck: nn.Module, rpn_head: RPNHead, roi_head: RoIHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn_head = rpn_head
        self.roi_head = roi_head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the detections by falling score; missing ones have score 0. See `Detections`."""
        features = self.neck(self.backbone(x))
        proposals = self.rpn_head(features, x.shape[2:])
        return self.roi_head(features, proposals, x.shape[2:])


class SingleStageDetector(nn.Module):
    """RetinaNet: (N, 3, H, W) -> boxes (N, M, 4), scores (N, M), labels (N, M)."""

    @checked
    def __init__(
        self, backbone: nn.Module, neck: nn.Module, bbox_head: RetinaHead, limits: DetectionLimits | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = bbox_head
        self.limits = limits or DetectionLimits()

    def forward(self, x: Tensor) -> Detections:
        """Return the detections by falling score; missing ones have score 0."""
        boxes, scores = self.bbox_head(self.neck(self.backbone(x)), x.shape[2:])
        return select_detections(boxes[:, :, None], scores, self.limits)


def faster_rcnn(neck: str, head: str, num_classes: int, backbone: str = "rednet") -> TwoStageDetector:
    """Return Faster R-CNN; `neck` and `head` (the RPN's) are `convolution` or `involution`, see `build_backbone`."""
    return _two_stage(backbone, neck, head, RoIHead(BBoxHead(num_classes)))


def mask_rcnn(neck: str, head: str, num_classes: int, backbone: str = "rednet") -> TwoStageDetector:
    """Return Mask R-CNN; `neck` and `head` (RPN and mask) are `convolution` or `involution`, see `build_backbone`."""
    return _two_stage(backbone, neck, head, RoIHead(BBoxHead(num_classes), _MASK_HEADS[head](num_classes)))


def _two_stage(backbone: str, neck: str, head: str, roi_head: RoIHead) -> TwoStageDetector:
    return TwoStageDetector(build_backbone(backbone), NECKS[neck](CHANNELS, 256, 5), _RPN_HEADS[head](), roi_head)


def retinanet(neck: str, num_classes: int, backbone: str = "rednet") -> SingleStageDetector:
    """Return RetinaNet; `neck` is `convolution` or `involution`, see `build_backbone`."""
    pyramid = NECKS[neck](CHANNELS, 256, 5, start_level=1, extra_convs_on_input=True)
    return SingleStageDetector(build_backbone(backbone), pyramid, RetinaHead(num_classes))
