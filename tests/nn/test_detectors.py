# SPDX-License-Identifier: Apache-2.0
"""Detectors: official names, honest shapes, whole export, missing detections, and heads against plain loops."""

from __future__ import annotations

import pytest
import reference
import torch
from dense_networks import small_detector
from torch.nn import functional as F

from tvm_involution.nn import build_model, load_checkpoint
from tvm_involution.nn.anchors import base_anchors, grid_anchors
from tvm_involution.nn.bbox_head import BBoxHead
from tvm_involution.nn.box_coder import decode_boxes
from tvm_involution.nn.detector import RoIHead
from tvm_involution.nn.mask_head import MaskHead
from tvm_involution.nn.retina_head import RetinaHead
from tvm_involution.nn.rpn_head import RPNHead

# some names with shapes of the official checkpoints, by the layers of mmdet and of d-li14/involution
FPN_CONVOLUTION = {"neck.lateral_convs.3.conv.bias": (256,), "neck.fpn_convs.0.conv.weight": (256, 256, 3, 3)}
FPN_INVOLUTION = {
    "neck.lateral_convs.0.conv.weight": (256, 256, 1, 1),
    "neck.fpn_convs.3.conv1.bn.running_var": (64,),
    "neck.fpn_convs.3.conv2.conv.weight": (784, 64, 1, 1),
}
BOXES = {
    "rpn_head.rpn_cls.weight": (3, 256, 1, 1),
    "rpn_head.rpn_reg.bias": (12,),
    "roi_head.bbox_head.shared_fcs.0.weight": (1024, 12544),
    "roi_head.bbox_head.shared_fcs.1.bias": (1024,),
    "roi_head.bbox_head.fc_cls.weight": (81, 1024),
    "roi_head.bbox_head.fc_reg.weight": (320, 1024),
}
MASKS = {
    "roi_head.mask_head.upsample.weight": (256, 256, 2, 2),
    "roi_head.mask_head.conv_logits.bias": (80,),
}
RETINA = {
    "neck.fpn_convs.3.conv.weight": (256, 2048, 3, 3),
    "neck.fpn_convs.4.conv.weight": (256, 256, 3, 3),
    "bbox_head.cls_convs.3.conv.bias": (256,),
    "bbox_head.reg_convs.0.conv.weight": (256, 256, 3, 3),
    "bbox_head.retina_cls.weight": (720, 256, 3, 3),
    "bbox_head.retina_reg.weight": (36, 256, 3, 3),
}
RPN_CONVOLUTION = {"rpn_head.rpn_conv.weight": (256, 256, 3, 3)}
RPN_INVOLUTION = {"rpn_head.rpn_conv.conv1.conv.weight": (64, 256, 1, 1)}
MASK_CONVOLUTION = {"roi_head.mask_head.convs.3.conv.weight": (256, 256, 3, 3)}
MASK_INVOLUTION = {"roi_head.mask_head.convs.3.0.conv2.conv.bias": (784,)}
STEM = {"backbone.stem.1.conv2.conv.weight": (98, 8, 1, 1)}
RESNET = {
    "backbone.conv1.weight": (64, 3, 7, 7),
    "backbone.bn1.running_var": (64,),
    "backbone.layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "backbone.layer4.2.conv2.weight": (512, 512, 3, 3),
}

OFFICIAL = {
    "faster_rcnn_rednet50": (STEM, FPN_CONVOLUTION, RPN_CONVOLUTION, BOXES),
    "faster_rcnn_rednet50_neck": (STEM, FPN_INVOLUTION, RPN_CONVOLUTION, BOXES),
    "faster_rcnn_rednet50_neck_head": (STEM, FPN_INVOLUTION, RPN_INVOLUTION, BOXES),
    "mask_rcnn_rednet50": (STEM, FPN_CONVOLUTION, RPN_CONVOLUTION, BOXES, MASKS, MASK_CONVOLUTION),
    "mask_rcnn_rednet50_neck": (STEM, FPN_INVOLUTION, RPN_CONVOLUTION, BOXES, MASKS, MASK_CONVOLUTION),
    "mask_rcnn_rednet50_neck_head": (STEM, FPN_INVOLUTION, RPN_INVOLUTION, BOXES, MASKS, MASK_INVOLUTION),
    "retinanet_rednet50": (STEM, RETINA, {"neck.fpn_convs.0.conv.weight": (256, 256, 3, 3)}),
    "retinanet_rednet50_neck": (STEM, RETINA, {"neck.fpn_convs.2.conv2.conv.bias": (784,)}),
    "faster_rcnn_resnet50": (RESNET, FPN_CONVOLUTION, RPN_CONVOLUTION, BOXES),
    "mask_rcnn_resnet50": (RESNET, FPN_CONVOLUTION, RPN_CONVOLUTION, BOXES, MASKS, MASK_CONVOLUTION),
    "retinanet_resnet50": (RESNET, RETINA, {"neck.fpn_convs.0.conv.weight": (256, 256, 3, 3)}),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    expected = {key: shape for part in OFFICIAL[name] for key, shape in part.items()}
    assert {key: tuple(state[key].shape) for key in expected if key in state} == expected
    assert {key.split(".")[0] for key in state} == {"backbone", "neck", *(key.split(".")[0] for key in expected)}


@pytest.mark.parametrize("involution", [False, True])
def test_export_is_whole_and_computes_the_same(involution, rng):
    model, x = small_detector(involution), torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected = model(x)
        program = torch.export.export(model, (x,))
        actual = program.module()(x)
    assert [tuple(part.shape) for part in expected] == [(1, 100, 4), (1, 100), (1, 100), (1, 100, 96, 64)]
    assert (expected[1] > 0).any() and expected[1].diff().le(0).all()
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_proposals_against_a_plain_loop(rng):
    head = RPNHead(16, strides=(8, 16), max_per_level=30, max_proposals=20).eval()
    features = [torch.randn(2, 16, 6, 5) * 3, torch.randn(2, 16, 3, 3) * 3]
    with torch.no_grad():
        actual = head(features, (48, 40))
        for image in range(2):
            candidates = []
            for level, (x, stride) in enumerate(zip(features, (8, 16), strict=True)):
                y = F.relu(head.rpn_conv(x[image : image + 1]))
                scores = head.rpn_cls(y)[0].permute(1, 2, 0).reshape(-1).sigmoid()
                deltas = head.rpn_reg(y)[0].permute(1, 2, 0).reshape(-1, 4)
                anchors = grid_anchors(base_anchors(stride, [8.0], (0.5, 1.0, 2.0)), x.shape[2:], stride)
                boxes = decode_boxes(anchors, deltas, (48, 40))
                ranked = sorted(range(len(scores)), key=lambda i, s=scores: -s[i])[:30]
                candidates += [(float(scores[i]), boxes[i].tolist(), level) for i in ranked]
            candidates.sort(key=lambda c: -c[0])
            kept = reference.nms(
                [c[1] for c in candidates], [c[0] for c in candidates], [c[2] for c in candidates], -1, 0.7, 20
            )
            expected = [candidates[i][1] if i >= 0 else [0.0] * 4 for i in kept]
            torch.testing.assert_close(actual[image], torch.tensor(expected), rtol=1e-5, atol=1e-4)


def test_missing_proposals_are_detected_as_nothing(rng):
    head = RoIHead(BBoxHead(6, 32, hidden_channels=48)).eval()
    proposals = torch.zeros(1, 5, 4)
    proposals[0, 0] = torch.tensor([4.0, 4, 60, 60])
    features = [torch.randn(1, 32, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    with torch.no_grad():
        boxes, scores, labels = head(features, proposals, (64, 64))
        alone = head(features, proposals[:, :1], (64, 64))
    torch.testing.assert_close((boxes, scores, labels), alone)
    assert 0 < (scores > 0).sum() <= 6


def test_retina_looks_at_the_best_anchors_of_a_level(rng):
    head = RetinaHead(5, 16, num_layers=1, strides=(8, 16), max_per_level=20).eval()
    features = [torch.randn(2, 16, 6, 5), torch.randn(2, 16, 1, 2)]
    with torch.no_grad():
        boxes, scores = head(features, (48, 40))
        head.max_per_level = 10**6
        all_boxes, all_scores = head(features, (48, 40))
    assert boxes.shape == (2, 20 + 18, 4) and all_boxes.shape == (2, 270 + 18, 4)
    best = all_scores[:, :270].amax(2).sort(dim=1, descending=True, stable=True).indices[:, :20]
    for image in range(2):
        expected = torch.cat([best[image], torch.arange(270, 288)])
        torch.testing.assert_close(scores[image], all_scores[image, expected])
        torch.testing.assert_close(boxes[image], all_boxes[image, expected])


def test_masks_are_those_of_the_labels(rng):
    head = MaskHead(6, 32).eval()
    regions, labels = torch.randn(4, 32, 14, 14), torch.tensor([[3, 0], [5, 3]])
    with torch.no_grad():
        masks = head(regions, labels)
        x = regions
        for layer in head.convs:
            x = layer(x)
        every = head.conv_logits(F.relu(head.upsample(x))).sigmoid()
    assert masks.shape == (2, 2, 28, 28)
    for image in range(2):
        for i in range(2):
            torch.testing.assert_close(masks[image, i], every[image * 2 + i, labels[image, i]])


def test_official_file_loads(tmp_path, rng):
    """As mmcv's runner writes it; the names are those that `test_official_names` checks."""
    source, model = small_detector(True), small_detector(True)
    meta = {"epoch": 12, "CLASSES": ("person", "bicycle"), "mmdet_version": "2.8.0"}
    torch.save({"meta": meta, "state_dict": source.state_dict()}, tmp_path / "mask_rcnn.pth")
    x = torch.randn(1, 3, 64, 64)
    load_checkpoint(model, tmp_path / "mask_rcnn.pth")
    with torch.no_grad():
        for one, other in zip(model(x), source(x), strict=True):
            assert torch.equal(one, other)
