# SPDX-License-Identifier: Apache-2.0
"""The network of local self-attention: as many parameters as its paper says, and compiled as the module is."""

from __future__ import annotations

import torch
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.nn import AttentionResNet, LocalAttention2d, build_model, count_operations, count_parameters
from tvm_involution.nn.build import init_weights


def test_published_share_of_parameters():
    """29 % fewer than ResNet-50 (abstract of arXiv 1906.05909)."""
    with torch.device("meta"):
        convolutions, attentions = build_model("resnet50"), build_model("attention_resnet50")
        operations = count_operations(attentions, (3, 224, 224))
    assert round(1 - count_parameters(attentions) / count_parameters(convolutions), 2) == 0.29
    assert sum(isinstance(m, LocalAttention2d) for m in attentions.modules()) == 16
    # products with keys, with positions and with values: a number each for every tap, pixel and channel
    taps = (
        3
        * 49
        * sum(
            blocks * size**2 * channels - (channels * size**2 - channels * (2 * size) ** 2 if size < 56 else 0)
            for blocks, size, channels in ((3, 56, 64), (4, 28, 128), (6, 14, 256), (3, 7, 512))
        )
    )
    assert operations.involution == taps


def test_odd_sizes_shrink_as_those_of_convolutions():
    with torch.device("meta"):
        model, other = AttentionResNet(26), ti.nn.ResNet(26)
        x = torch.empty(1, 3, 75, 107)
        for name in ("layer1", "layer2", "layer3", "layer4"):
            shapes = []
            for each in (model, other):
                getattr(each, name).register_forward_hook(lambda m, i, out, shapes=shapes: shapes.append(out.shape))
                each(x)
            assert shapes[0][2:] == shapes[1][2:]


def test_compiled(rng, tmp_path):
    model = AttentionResNet(26, 10)
    init_weights(model)
    x = torch.from_numpy(rng.standard_normal((1, 3, 96, 64))).float()
    library = ti.compile((model.eval(), (x,)))
    library.save(tmp_path / "network.so")
    assert library.metadata.kernels.by_rule["LocalAttention"] == 6 and library.metadata.kernels.fallback == 0
    expected = nn.Module.double(model)(x.double()).detach()
    assert relative_norm(ti.load(tmp_path / "network.so")(x), expected) < 1e-5
