# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks: official names, the pyramid, resizing, and whole export."""

from __future__ import annotations

import pytest
import torch
from dense_networks import small_segmentor
from torch.nn import functional as F

from tvm_involution import UserError
from tvm_involution.nn import build_model
from tvm_involution.nn.fpn import FPN, InvolutionFPN

# some names with shapes of the official checkpoints, by the layers of mmseg and of d-li14/involution
OFFICIAL = {
    "semantic_fpn_rednet50": {
        "neck.fpn_convs.3.conv.weight": (256, 256, 3, 3),
        "decode_head.scale_heads.0.0.conv.weight": (128, 256, 3, 3),
        "decode_head.scale_heads.1.0.bn.weight": (128,),
        "decode_head.scale_heads.3.4.conv.weight": (128, 128, 3, 3),
        "decode_head.conv_seg.weight": (19, 128, 1, 1),
    },
    "semantic_fpn_rednet50_neck": {
        "neck.fpn_convs.0.conv1.conv.weight": (64, 256, 1, 1),
        "decode_head.scale_heads.2.2.bn.running_mean": (128,),
        "decode_head.conv_seg.bias": (19,),
    },
    "upernet_rednet50": {
        "decode_head.psp_modules.3.1.conv.weight": (512, 2048, 1, 1),
        "decode_head.bottleneck.conv.weight": (512, 4096, 3, 3),
        "decode_head.lateral_convs.2.bn.bias": (512,),
        "decode_head.fpn_convs.0.conv.weight": (512, 512, 3, 3),
        "decode_head.fpn_bottleneck.conv.weight": (512, 2048, 3, 3),
        "decode_head.conv_seg.weight": (19, 512, 1, 1),
        "auxiliary_head.convs.0.conv.weight": (256, 1024, 3, 3),
        "auxiliary_head.conv_seg.weight": (19, 256, 1, 1),
    },
    # mmseg's ResNetV1c
    "semantic_fpn_resnet50": {
        "backbone.stem.0.weight": (32, 3, 3, 3),
        "backbone.stem.4.running_mean": (32,),
        "backbone.stem.6.weight": (64, 32, 3, 3),
        "backbone.layer3.5.conv2.weight": (256, 256, 3, 3),
        "neck.fpn_convs.3.conv.weight": (256, 256, 3, 3),
        "decode_head.conv_seg.weight": (19, 128, 1, 1),
    },
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_names(name):
    with torch.device("meta"):
        state = build_model(name).state_dict()
    expected = OFFICIAL[name]
    assert {key: tuple(state[key].shape) for key in expected if key in state} == expected
    assert {key.split(".")[0] for key in state} == {"backbone", *(key.split(".")[0] for key in expected)}


@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
@pytest.mark.parametrize("kind", ["convolution", "involution", "upernet"])
def test_logits_have_the_size_of_the_picture_and_export_is_whole(kind, size, rng):
    model, x = small_segmentor(kind), torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = model(x)
        actual = torch.export.export(model, (x,)).module()(x)
    assert expected.shape == (1, 5, *size)
    assert torch.equal(actual, expected)


def test_pyramid_adds_coarser_levels_to_finer_ones(rng):
    neck = FPN((3, 5, 7), 4, 5).eval()
    inputs = [torch.randn(2, c, h, w) for c, h, w in ((3, 9, 14), (5, 5, 7), (7, 3, 4))]
    with torch.no_grad():
        outputs = neck(inputs)
        total = None
        for level in (2, 1, 0):
            lateral = neck.lateral_convs[level].conv(inputs[level])
            if total is not None:
                size = lateral.shape[2:]
                rows = (torch.arange(size[0]) * total.shape[2] / size[0]).long()
                columns = (torch.arange(size[1]) * total.shape[3] / size[1]).long()
                lateral = lateral + total[:, :, rows][:, :, :, columns]
            total = lateral
            torch.testing.assert_close(outputs[level], neck.fpn_convs[level].conv(total))
    torch.testing.assert_close(outputs[3], outputs[2][:, :, ::2, ::2])
    torch.testing.assert_close(outputs[4], outputs[3][:, :, ::2, ::2])


def test_extra_levels_of_retinanet_come_from_the_backbone(rng):
    neck = InvolutionFPN((4, 8, 32), 16, 4, start_level=1, extra_convs_on_input=True).eval()
    inputs = [torch.randn(1, c, s, s) for c, s in ((4, 16), (8, 8), (32, 4))]
    with torch.no_grad():
        outputs = neck(inputs)
        expected = F.conv2d(inputs[-1], neck.fpn_convs[2].conv.weight, neck.fpn_convs[2].conv.bias, 2, 1)
    torch.testing.assert_close(outputs[2], expected)
    assert [tuple(x.shape[2:]) for x in outputs] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_fewer_outputs_than_levels():
    with pytest.raises(UserError, match="num_outs=2"):
        FPN((4, 8, 16), 4, 2)
