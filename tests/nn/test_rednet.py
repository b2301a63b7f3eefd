# SPDX-License-Identifier: Apache-2.0
"""RedNet and ResNet: names, shapes, arguments, and untrained networks that tell one output from another."""

from __future__ import annotations

import official
import pytest
import torch

from tvm_involution import UserError
from tvm_involution.nn import ImageClassifier, RedNet, ResNet, build_model

SMALL = {"stage_blocks": (1, 1, 1, 1), "stem_channels": 32, "base_channels": 16}


@pytest.mark.parametrize("depth", official.BLOCKS)
def test_state_is_the_official_one(depth):
    with torch.device("meta"):
        model = ImageClassifier(RedNet(depth), 1000)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items() if not name.endswith("_tracked")}
    assert shapes == official.shapes(depth)


@pytest.mark.parametrize(("size", "expected"), [((224, 224), (7, 7)), ((225, 193), (8, 7)), ((33, 64), (2, 2))])
def test_size_is_halved_five_times_rounding_up(size, expected):
    with torch.device("meta"):
        model, x = RedNet(26), torch.empty(2, 3, *size)
    assert model(x).shape == (2, 2048, *expected)


def test_stages_asked_for_are_returned():
    model = RedNet(**SMALL, out_indices=(0, 2, 3), in_channels=4).eval()
    shapes = [tuple(t.shape) for t in model(torch.rand(1, 4, 64, 40))]
    assert shapes == [(1, 64, 16, 10), (1, 256, 4, 3), (1, 512, 2, 2)]
    assert model.out_channels == 512
    assert RedNet(**SMALL, out_indices=(1,)).out_channels == 128


def test_dilation_instead_of_stride_keeps_the_resolution():
    model = RedNet(**SMALL, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)).eval()
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 512, 8, 8)
    assert [getattr(model, name)[0].conv2.dilation for name in model.stages] == [(1, 1), (1, 1), (2, 2), (4, 4)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"depth": 34}, "no RedNet of depth 34; expected one of 26, 38, 50, 101, 152"),
        ({"stage_blocks": (1, 1)}, "same stages"),
        ({"out_indices": (4,)}, "same stages"),
        ({"out_indices": (-1,)}, "out_indices must be"),
        ({"out_indices": ()}, "same stages"),
        ({"dilations": (1, 1, 1)}, "same stages"),
        ({"base_channels": 20}, "20 channels must be a multiple"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        RedNet(**arguments)


@pytest.mark.parametrize("depth", [26, 152])
def test_untrained_network_answers_sanely_and_from_every_block(depth, rng):
    """Activations neither vanish nor blow up, and the answer depends on the picture."""
    model = build_model(f"rednet{depth}")
    assert not model.training
    sizes: dict[str, float] = {}
    for name, part in model.named_modules():
        if name.endswith((".bn3", ".relu")):
            part.register_forward_hook(lambda _, __, out, name=name: sizes.__setitem__(name, out.std().item()))
    x = torch.from_numpy(rng.standard_normal((2, 3, 64, 64))).float()
    with torch.no_grad():
        logits = model(x)
    assert all(1e-2 < size < 1e2 for size in sizes.values()), sizes
    assert (logits[0] - logits[1]).norm() > 1e-3 * logits.norm()


def test_the_seed_alone_decides():
    states = [build_model("rednet26", seed=seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["backbone.layer4.0.conv1.weight"], states[2]["backbone.layer4.0.conv1.weight"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    build_model("rednet_digits")
    assert torch.equal(torch.rand(1), expected)


def test_batch_norm_matters_to_the_untrained_network(rng):
    """Otherwise comparing a compiled network, its batch norm folded, would prove nothing."""
    model = build_model("rednet26")
    x = torch.from_numpy(rng.standard_normal((1, 3, 64, 64))).float()
    with torch.no_grad():
        before = model(x)
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.zero_(), part.running_var.fill_(1), part.weight.fill_(1), part.bias.zero_()
        assert (model(x) - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize(("depth", "parameters", "tensors"), [(50, 25_557_032, 161), (101, 44_549_160, 314)])
def test_resnet_is_torchvisions(depth, parameters, tensors):
    with torch.device("meta"):
        model = ResNet(depth)
    state = dict(model.named_parameters())
    assert (sum(p.numel() for p in state.values()), len(state)) == (parameters, tensors)
    assert {"conv1.weight", "bn1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.bias", "fc.bias"} <= set(state)
    assert tuple(state["layer2.0.conv2.weight"].shape) == (128, 128, 3, 3)


def test_resnet_forward_and_depth():
    with torch.device("meta"):
        assert ResNet(50, 7)(torch.empty(2, 3, 65, 97)).shape == (2, 7)
    with pytest.raises(UserError, match="no ResNet of depth 18"):
        ResNet(18)
