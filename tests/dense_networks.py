# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmentation networks of a few channels: they compile in seconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tvm_involution.nn.bbox_head import BBoxHead
from tvm_involution.nn.detector import RoIHead, SingleStageDetector, TwoStageDetector
from tvm_involution.nn.fpn import FPN, InvolutionFPN
from tvm_involution.nn.mask_head import InvolutionMaskHead, MaskHead
from tvm_involution.nn.retina_head import RetinaHead
from tvm_involution.nn.rpn_head import InvolutionRPNHead, RPNHead
from tvm_involution.nn.segmentor import Segmentor
from tvm_involution.nn.semantic_fpn_head import SemanticFPNHead
from tvm_involution.nn.uper_head import UPerHead

CHANNELS = (8, 16, 16, 32)


class Pyramid(nn.Module):
    """A backbone of one convolution a level: (N, 3, H, W) -> maps of strides 4, 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        steps = zip((3, *CHANNELS), CHANNELS, (4, 2, 2, 2), strict=False)
        self.levels = nn.ModuleList(nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in steps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for level in self.levels:
            maps.append(x := torch.relu(level(x)))
        return tuple(maps)


def small_detector(involution: bool) -> TwoStageDetector:
    """Mask R-CNN with few channels, proposals and objects."""
    necks, rpn, mask = (
        (InvolutionFPN, InvolutionRPNHead, InvolutionMaskHead) if involution else (FPN, RPNHead, MaskHead)
    )
    return TwoStageDetector(
        Pyramid(),
        necks(CHANNELS, 16, 5),
        rpn(16, max_per_level=40, max_proposals=25),
        RoIHead(BBoxHead(6, 16, hidden_channels=24), mask(6, 16, num_layers=1)),
    ).eval()


def small_retinanet() -> SingleStageDetector:
    """RetinaNet with few channels and anchors, whose scores spread."""
    head = RetinaHead(4, 16, num_layers=1, max_per_level=50)
    nn.init.normal_(head.retina_cls.weight, std=0.1)
    return SingleStageDetector(Pyramid(), FPN(CHANNELS, 16, 5, start_level=1, extra_convs_on_input=True), head).eval()


def small_segmentor(kind: str) -> Segmentor:
    """Semantic FPN with a neck of `kind`, or `upernet`; 5 classes."""
    if kind == "upernet":
        return Segmentor(Pyramid(), None, UPerHead(CHANNELS, 16, 5)).eval()
    neck = InvolutionFPN if kind == "involution" else FPN
    return Segmentor(Pyramid(), neck(CHANNELS, 16, 4), SemanticFPNHead(16, 8, 5)).eval()
