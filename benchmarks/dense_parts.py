# SPDX-License-Identifier: Apache-2.0
"""Detectors without what selects boxes, for runtimes that cannot take it: `dense_parts:faster_rcnn_resnet50` as MODEL.

What is left is what is counted in a detector's operations: backbone, neck, the region proposal network's layers, and
the box and mask heads on 1000 and 100 regions of random numbers, as in mmdet's `forward_dummy`. Sorting, suppression,
RoIAlign and pasting are out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvm_involution import zoo
from tvm_involution.nn import build_model
from tvm_involution.nn.detector import SingleStageDetector, TwoStageDetector

BOXES, MASKS = 1000, 100
NETWORKS = tuple(spec.name for spec in zoo.list_models() if spec.task in ("detection", "instance_segmentation"))


class DenseSingleStage(nn.Module):
    """(N, 3, H, W) -> scores and deltas of every level."""

    def __init__(self, detector: SingleStageDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        detector = self.detector
        levels = detector.neck(detector.backbone(x))
        return tuple(part for level in levels for part in detector.bbox_head._predict(level))


class DenseTwoStage(nn.Module):
    """(N, 3, H, W) and regions (N, R, C, 7, 7) and perhaps (N, M, C, 14, 14) -> scores, deltas and logits of masks."""

    def __init__(self, detector: TwoStageDetector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor, boxes: Tensor, masks: Tensor | None = None) -> tuple[Tensor, ...]:
        detector, rpn, roi = self.detector, self.detector.rpn_head, self.detector.roi_head
        outputs = []
        for level in detector.neck(detector.backbone(x)):
            level = F.relu(rpn.rpn_conv(level))
            outputs += [rpn.rpn_cls(level), rpn.rpn_reg(level)]
        hidden = boxes.flatten(0, 1).flatten(1)
        for layer in roi.bbox_head.shared_fcs:
            hidden = F.relu(layer(hidden))
        outputs += [roi.bbox_head.fc_cls(hidden), roi.bbox_head.fc_reg(hidden)]
        if masks is not None:
            masks = masks.flatten(0, 1)
            for layer in roi.mask_head.convs:
                masks = layer(masks)
            outputs.append(roi.mask_head.conv_logits(F.relu(roi.mask_head.upsample(masks))))
        return tuple(outputs)


def dense_parts(name: str, image_size: tuple[int, int] | None = None) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return those parts of a detector of the zoo, and examples of what they take, by default of the published size."""
    detector = build_model(name)
    picture = torch.zeros(1, 3, *(image_size or zoo.get_model(name).published["flops_size"]))
    if isinstance(detector, SingleStageDetector):
        return DenseSingleStage(detector).eval(), (picture,)
    assert isinstance(detector, TwoStageDetector)
    heads = [(BOXES, detector.roi_head.bbox_head.output_size)]
    if hasattr(detector.roi_head, "mask_head"):
        heads.append((MASKS, detector.roi_head.mask_head.output_size))
    channels = detector.rpn_head.rpn_cls.in_channels
    regions = [torch.zeros(1, count, channels, size, size) for count, size in heads]
    return DenseTwoStage(detector).eval(), (picture, *regions)


def __getattr__(name: str) -> Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]:
    """Return what builds the parts of the detector called `name`."""
    if name not in NETWORKS:
        raise AttributeError(name)
    return lambda: dense_parts(name)
