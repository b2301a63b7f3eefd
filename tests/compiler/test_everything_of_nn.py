# SPDX-License-Identifier: Apache-2.0
"""Everything that `nn` exports is compiled: layers and functions here, in one network of all; networks elsewhere."""

from __future__ import annotations

import dense_networks
import pytest
import torch
from conftest import tiny_rednet
from dense_networks import Pyramid
from reference import relative_norm
from torch import Tensor, nn

import tvm_involution as ti
from tvm_involution.nn.build import init_weights

# what takes no tensors
DESCRIBE = {"Operations", "build_model", "count_operations", "count_parameters", "load_checkpoint"}
DESCRIBE |= {"from_pretrained", "save_pretrained"}
# how they run in training: nn/test_compiled_kernels.py and test_replace_involutions.py
DESCRIBE |= {"replace_involutions", "use_kernels", "wait_for_kernels"}
# what makes the networks that other tests compile and compare: conftest.py's library, test_compile.py,
# test_dense_networks.py and nn/test_attention_resnet.py
ELSEWHERE = {
    "Bottleneck": tiny_rednet,
    "ConvModule": tiny_rednet,
    "FPN": lambda: dense_networks.small_detector(False),
    "ImageClassifier": tiny_rednet,
    "InvolutionFPN": lambda: dense_networks.small_detector(True),
    "RedNet": tiny_rednet,
    "ResNet": lambda: ti.nn.ResNet(50),
    "SingleStageDetector": dense_networks.small_retinanet,
    "TwoStageDetector": lambda: dense_networks.small_detector(False),
    "Segmentor": lambda: dense_networks.small_segmentor("fpn"),
    "AttentionResNet": lambda: ti.nn.AttentionResNet(26),
}


class Everything(nn.Module):
    """Each layer and function once: a picture (1, 3, 64, 64), and boxes that are computed of it -> {name: tensor}."""

    def __init__(self) -> None:
        super().__init__()
        self.pyramid = Pyramid()
        self.layers = nn.ModuleDict(
            {
                "Involution1d": ti.nn.Involution1d(16, 5),
                "Involution2d": ti.nn.Involution2d(16, 5, 2),
                "Involution3d": ti.nn.Involution3d(16, 3),
                "LinearClsHead": ti.nn.LinearClsHead(16, 5),
                "LocalAttention2d": ti.nn.LocalAttention2d(16, 3, 2),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.pyramid(x)
        last = maps[1]  # (1, 16, 8, 8)
        made: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            if name == "Involution1d":
                made[name] = layer(last.flatten(2))
            elif name == "Involution3d":
                made[name] = layer(last.unflatten(3, (2, 4)))
            elif name == "LinearClsHead":
                made[name] = layer(last.mean((2, 3)))
            else:
                made[name] = layer(last)
        taps = last[:, :9].sigmoid()
        made["involution1d"] = ti.nn.involution1d(last.flatten(2), taps[:, :3].flatten(2).unsqueeze(1), padding=1)
        made["involution2d"] = ti.nn.involution2d(last, taps.view(1, 1, 3, 3, 8, 8), padding=1)
        made["involution3d"] = ti.nn.involution3d(
            last.unflatten(3, (2, 4)), taps.view(1, 1, 3, 3, 1, 8, 2, 4), padding=(1, 1, 0)
        )
        made["local_attention2d"] = ti.nn.local_attention2d(last, last.flip(1), last, 3, 4, border="shifted")
        # 8 boxes of 16x16 pixels, each two over each other
        corners = torch.arange(8.0).view(1, 8, 1) // 2 * torch.tensor([4.0, 9.0]) + last[:, 0, :, :2] * 0.01
        boxes, groups = torch.cat([corners, corners + 16], 2), torch.zeros(1, 8, dtype=torch.int64)
        made["nms"] = ti.nn.nms(boxes, torch.linspace(1, 0.5, 8).view(1, 8), groups, 0.1, 0.5, 6)
        made["roi_align"] = ti.nn.roi_align([maps[0], maps[0]], boxes, groups, 2, [0.25, 0.25], 2)
        made["paste_masks"] = ti.nn.paste_masks(last[:, :8].sigmoid(), boxes, 40, 60, 0.5)
        return made


def test_everything(rng, tmp_path):
    model, x = Everything(), torch.from_numpy(rng.standard_normal((1, 3, 64, 64))).float()
    init_weights(model)
    expected = model.eval()(x)
    assert {*expected, *ELSEWHERE} | DESCRIBE == set(ti.nn.__all__)
    ti.compile((model, (x,))).save(tmp_path / "everything.so")
    results = ti.load(tmp_path / "everything.so")(x)
    results = results.values() if isinstance(results, dict) else results
    for (name, wanted), actual in zip(expected.items(), results, strict=True):
        if wanted.is_floating_point():
            assert relative_norm(actual, wanted.detach()) < 1e-5, name
        else:
            assert (torch.as_tensor(actual) != wanted).double().mean() <= 0.001, name


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_networks_are_those_that_other_tests_compile(name):
    parts = ELSEWHERE[name]().modules()
    assert any(type(part) is getattr(ti.nn, name) for part in parts)
