# SPDX-License-Identifier: Apache-2.0
"""The involution layer against the official formulation and against the plain reference."""

from __future__ import annotations

import math

import pytest
import torch
from reference import generate_kernel, relative_norm
from reference import involution2d as reference
from torch import nn

from tvm_involution import UserError
from tvm_involution.nn import Involution2d
from tvm_involution.nn.build import init_weights


def make_layer(*args, **kwargs) -> Involution2d:
    layer = Involution2d(*args, **kwargs).double().eval()
    init_weights(layer)
    return layer


def official(layer: Involution2d, x: torch.Tensor) -> torch.Tensor:
    """Pool with flooring windows, unfold the whole image, multiply, sum: what the official module does."""
    hidden = nn.functional.avg_pool2d(x, layer.stride)
    weight = layer.conv2.conv(torch.relu(layer.conv1.bn(layer.conv1.conv(hidden))))
    n, _, h, w = weight.shape
    taps = math.prod(layer.kernel_size)
    columns = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    columns = columns.view(n, layer.groups, -1, taps, h, w)
    return (weight.view(n, layer.groups, 1, taps, h, w) * columns).sum(3).flatten(1, 2)


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 1, 1), (7, 1, 1), (7, 2, 1), (5, 1, 2), (3, 3, 1)])
def test_equals_the_official_module_where_the_stride_divides_the_size(rng, kernel_size, stride, dilation):
    layer = make_layer(32, kernel_size, stride, dilation=dilation)
    x = torch.from_numpy(rng.standard_normal((2, 32, 12, 18)))
    torch.testing.assert_close(layer(x), official(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 7), (9, 12), (1, 5), (13, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_any_size_against_the_reference(rng, size, stride):
    layer = make_layer(16, 7, stride, group_channels=8, reduction_ratio=2)
    x = torch.from_numpy(rng.standard_normal((2, 16, *size)))
    bn = layer.conv1.bn
    scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    arrays = (layer.conv1.conv.weight[:, :, 0, 0], scale, bn.bias - bn.running_mean * scale)
    span = layer.conv2.conv
    reduce_weight, scale, shift, weight, bias = (
        t.detach().numpy() for t in (*arrays, span.weight[:, :, 0, 0], span.bias)
    )
    kernel = generate_kernel(x.numpy(), reduce_weight, scale, shift, weight, bias, (7, 7), (stride, stride))
    expected = reference(x, kernel, (stride, stride), (3, 3))
    assert relative_norm(layer(x).detach().numpy(), expected) < 1e-12


def test_stride_two_gives_the_size_of_a_strided_convolution(rng):
    layer, shortcut = make_layer(16, 7, 2), nn.Conv2d(16, 16, 1, 2).double()
    for size in range(1, 9):
        x = torch.from_numpy(rng.standard_normal((1, 16, size, size + 1)))
        assert layer(x).shape == shortcut(x).shape


def test_names_are_the_official_ones():
    names = {name: tuple(t.shape) for name, t in Involution2d(64, 7).named_parameters()}
    assert names == {
        "conv1.conv.weight": (16, 64, 1, 1),
        "conv1.bn.weight": (16,),
        "conv1.bn.bias": (16,),
        "conv2.conv.weight": (196, 16, 1, 1),
        "conv2.conv.bias": (196,),
    }
    assert Involution2d(64, 7).avgpool is None and isinstance(Involution2d(64, 7, 2).avgpool, nn.AvgPool2d)


def test_every_parameter_learns(rng):
    layer = make_layer(16, 3, 2).train()
    layer(torch.from_numpy(rng.standard_normal((2, 16, 5, 6)))).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_autocast(rng):
    layer = make_layer(16, 3).float()
    x = torch.from_numpy(rng.standard_normal((1, 16, 6, 6))).float()
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert relative_norm(half.detach().float().numpy(), layer(x).detach().numpy()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 40}, "40 channels must be a multiple of group_channels=16"),
        ({"channels": 48, "reduction_ratio": 5}, "reduction_ratio=5"),
        ({"channels": 16, "kernel_size": 4}, "kernel_size=4 with dilation=1"),
    ],
)
def test_arguments_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        Involution2d(**arguments)


def test_even_kernel_with_a_middle(rng):
    layer = make_layer(16, 4, dilation=2)
    x = torch.from_numpy(rng.standard_normal((1, 16, 8, 9)))
    torch.testing.assert_close(layer(x), official(layer, x), rtol=1e-12, atol=1e-12)
