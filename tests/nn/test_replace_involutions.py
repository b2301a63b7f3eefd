# SPDX-License-Identifier: Apache-2.0
"""Involutions that somebody wrote, in modules that go on training."""

from __future__ import annotations

import copy

import pytest
import torch
from involution_forms import FORMS, KK, G
from reference import relative_norm
from torch import nn

from tvm_involution import UserError
from tvm_involution.nn import replace_involutions


class Layer(nn.Module):
    """As most write it: batch norm, a bottleneck, `nn.Unfold` and average pooling as children."""

    def __init__(self, channels=16, kernel_size=3, stride=1, groups=2):
        super().__init__()
        self.k, self.s, self.g = kernel_size, stride, groups
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.reduce = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.span = nn.Conv2d(4, kernel_size**2 * groups, 1)
        self.unfold = nn.Unfold(kernel_size, 1, kernel_size // 2, stride)

    def forward(self, x):
        weight = self.span(self.reduce(self.pool(x)))
        b, _, h, w = weight.shape
        windows = self.unfold(x).view(b, self.g, x.shape[1] // self.g, self.k**2, h, w)
        return (weight.view(b, self.g, 1, self.k**2, h, w) * windows).sum(3).view(b, -1, h, w)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Layer(), nn.BatchNorm2d(16), nn.Dropout(0.1), Layer(stride=2))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Written(nn.Module):
    """A form with the convolution that makes its kernel."""

    def __init__(self, form):
        super().__init__()
        self.span, self.form = nn.Conv2d(8, G * KK, 1), form

    def forward(self, x):
        return self.form(x, self.span(x))


@pytest.mark.parametrize("name", ["official", "groups interleaved", "F.pad, reflect", "shifted slices added", "einsum"])
def test_forms(name, rng):
    module, x = Written(FORMS[name]), torch.randn(2, 8, 6, 5, requires_grad=True)
    plain = copy.deepcopy(module)
    report = replace_involutions(module, x.detach())
    (found,) = report.replaced[""]
    assert found.kernel_size == (3, 3) and report.error < 1e-6 and not report.left
    for one in (plain, module):
        one(x).square().sum().backward()
    for actual, expected in zip(module.parameters(), plain.parameters(), strict=True):
        assert relative_norm(actual.grad.numpy(), expected.grad.numpy()) < 1e-5


def test_a_training_script_goes_on(rng):
    """Parameters under their names, running statistics, dropout's random numbers, other batches, autocast, state."""
    model = Network()
    plain, names = copy.deepcopy(model), list(model.state_dict())
    report = replace_involutions(model, torch.randn(2, 3, 8, 8))
    assert list(report.replaced) == ["blocks.0", "blocks.3"] and list(model.state_dict()) == names and model.training
    assert "blocks.3: involution2d, kernel 3x3, stride 2x2, padding 1x1, dilation 1x1, groups 2" in str(report)
    optimizers = [torch.optim.SGD(one.parameters(), 0.05, momentum=0.9) for one in (plain, model)]
    for step, batch in enumerate((4, 4, 4, 3)):
        x, autocast = torch.randn(batch, 3, 8, 8), step == 2
        losses = []
        for one, optimizer in zip((plain, model), optimizers, strict=True):
            torch.manual_seed(step)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                losses.append(one(x).float().square().mean())
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-3, atol=1e-4)
    twin = copy.deepcopy(model)
    twin.load_state_dict(plain.state_dict())
    torch.testing.assert_close(twin.eval()(x), plain.eval()(x), rtol=1e-4, atol=1e-5)


def test_only_the_operator_is_left(rng):
    """The second call of a kind computes no windows."""
    model, x = Network(), torch.randn(2, 3, 8, 8)
    replace_involutions(model, x)
    model(x)
    with torch.profiler.profile() as profile:
        model(x)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["tvm_involution::involution2d"] == 2 and "aten::im2col" not in counts


class Energy(nn.Module):
    """Takes windows, and is no involution."""

    def forward(self, x):
        windows = nn.functional.unfold(x, 3, padding=1)
        return (windows * windows).sum(1)


class Undecided(Layer):
    """Cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else nn.functional.unfold(x, 3)


def test_what_stays_is_said(rng):
    module = Energy()
    report = replace_involutions(module, torch.randn(1, 4, 5, 5))
    assert (
        not report.replaced and "forward" not in module.__dict__ and "Energy: a product with windows" in report.left[0]
    )
    report = replace_involutions(Undecided(), torch.ones(1, 16, 5, 5))
    assert not report.replaced and "cannot be traced" in report.left[0]


def test_an_example_that_does_not_fit():
    module = Network()
    with pytest.raises(UserError, match=r"Network cannot be called with \[\[1, 4, 8, 8\]\]: .*; give an example"):
        replace_involutions(module, torch.randn(1, 4, 8, 8))
    assert not any("forward" in part.__dict__ for part in module.modules())
