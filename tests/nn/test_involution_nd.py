# SPDX-License-Identifier: Apache-2.0
"""Involution along one and three axes in PyTorch: operators, gradients, layers."""

from __future__ import annotations

import pytest
import torch
from reference import involution as reference
from reference import relative_norm
from torch import nn

from tvm_involution import UserError
from tvm_involution.nn import Involution1d, Involution2d, Involution3d, count_operations, involution1d, involution3d
from tvm_involution.nn.build import init_weights

FUNCTIONS = {1: involution1d, 3: involution3d}
LAYERS = {1: Involution1d, 3: Involution3d}
# N, C, G, size, kernel, stride, padding, dilation
CASES = [
    (2, 4, 2, (9,), (5,), (2,), (3,), (1,)),
    (1, 3, 3, (8,), (2,), (1,), (0,), (3,)),
    (2, 4, 2, (3, 4, 5), (3, 1, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2)),
    (1, 3, 1, (4, 3, 3), (2, 3, 3), (2, 1, 1), (0, 1, 2), (1, 1, 2)),
]
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def make_inputs(rng, case, dtype=torch.float64):
    n, channels, groups, size, kernel_size, stride, padding, dilation = case
    out = [
        (extent + 2 * p - d * (k - 1) - 1) // s + 1
        for extent, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True)
    ]
    x = torch.from_numpy(rng.standard_normal((n, channels, *size))).to(dtype)
    return x, torch.from_numpy(rng.standard_normal((n, groups, *kernel_size, *out))).to(dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference(rng, case, dtype):
    x, kernel = make_inputs(rng, case, dtype)
    actual = FUNCTIONS[len(case[3])](x, kernel, *case[5:])
    assert actual.dtype == dtype
    assert relative_norm(actual.double().numpy(), reference(x.double(), kernel.double(), *case[5:])) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", [CASES[0], CASES[2]], ids=str)
def test_gradients(rng, case):
    x, kernel = (t.requires_grad_() for t in make_inputs(rng, case))
    function = FUNCTIONS[len(case[3])]
    assert torch.autograd.gradcheck(lambda x, kernel: function(x, kernel, *case[5:]), (x, kernel))


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_operator_is_registered_soundly(rng, case):
    """Schema, autograd registration, fake kernel and tracing with symbolic sizes, as torch checks them itself."""
    x, kernel = (t.requires_grad_() for t in make_inputs(rng, case, torch.float32))
    operator = getattr(torch.ops.tvm_involution, f"involution{len(case[3])}d").default
    torch.library.opcheck(operator, (x, kernel, *(list(values) for values in case[5:])))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "arguments", "words"),
    [
        ((1, 4, 5, 5), (1, 1, 3, 5), {}, ["involution1d takes", "(N, C, W)", "(N, G, KW, OW)"]),
        ((1, 4, 5), (1, 2, 3, 5), {"padding": (1, 1)}, ["one for the only axis of at least 0", "[1, 1]"]),
        ((1, 4, 5, 5, 5), (1, 1, 3, 3, 5, 5), {}, ["involution3d takes", "(N, G, KD, KH, KW, OD, OH, OW)"]),
        ((1, 4, 5, 5, 5), (1, 2, 3, 3, 3, 5, 5, 5), {}, ["(1, 2, 3, 3, 3, 3, 3, 3)"]),
        ((1, 4, 5, 5, 5), (1, 2, 3, 3, 3, 3, 3, 3), {"stride": (1, 1)}, ["an int or 3 of them of at least 1"]),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_errors_show_what_came_and_what_was_expected(device, x_shape, kernel_shape, arguments, words):
    function = involution1d if "1d" in words[0] or "only" in words[0] else involution3d
    with pytest.raises(UserError) as caught:
        function(torch.zeros(x_shape, device=device), torch.zeros(kernel_shape, device=device), **arguments)
    assert all(word in str(caught.value) for word in words), caught.value


def unfolded(layer, x):
    """Pool, pad, unfold along each axis, multiply, sum; for sizes that the stride divides."""
    axes = layer.axes
    pool = getattr(nn.functional, f"avg_pool{axes}d")
    kernel = layer.conv2(layer.conv1(pool(x, layer.stride)))
    kernel = kernel.view(x.shape[0], layer.groups, 1, *layer.kernel_size, *kernel.shape[2:])
    windows = nn.functional.pad(x, [pad for pad in reversed(layer.padding) for _ in range(2)])
    for axis, (taps, step, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True), 2):
        windows = windows.unfold(axis, dilation * (taps - 1) + 1, step)
    windows = windows[(..., *(slice(None, None, d) for d in layer.dilation))].unflatten(1, (layer.groups, -1))
    kernel = kernel.permute(0, 1, 2, *range(3 + axes, 3 + 2 * axes), *range(3, 3 + axes))
    return (windows * kernel).sum(tuple(range(-axes, 0))).flatten(1, 2)


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        ((12,), {"kernel_size": 7}),
        ((12,), {"kernel_size": 5, "stride": 3, "dilation": 2}),
        ((4, 6, 8), {"kernel_size": 3}),
        ((4, 6, 8), {"kernel_size": (1, 3, 5), "stride": (1, 2, 2), "dilation": (1, 2, 1)}),
    ],
    ids=str,
)
def test_layer_is_unfold_multiply_sum(rng, size, arguments):
    layer = LAYERS[len(size)](32, **arguments).double().eval()
    init_weights(layer)
    x = torch.from_numpy(rng.standard_normal((2, 32, *size)))
    torch.testing.assert_close(layer(x), unfolded(layer, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("axes", [1, 3])
def test_odd_sizes_have_the_size_of_a_strided_convolution(rng, axes):
    layer = LAYERS[axes](16, 3, 2).eval()
    assert layer(torch.zeros(1, 16, *(5, 7, 3)[:axes])).shape[2:] == (3, 4, 2)[:axes]


def test_rectangular_kernels_of_two_axes(rng):
    layer = Involution2d(16, (1, 5), (1, 2)).double().eval()
    init_weights(layer)
    x = torch.from_numpy(rng.standard_normal((2, 16, 5, 8)))
    torch.testing.assert_close(layer(x), unfolded(layer, x), rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="kernel_size must be a positive int or 2 of them"):
        Involution2d(16, (1, 3, 5))


def test_every_parameter_learns(rng):
    layer = Involution3d(16, 3, 2).train()
    layer(torch.from_numpy(rng.standard_normal((2, 16, 5, 6, 4))).float()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


def test_operations_are_counted():
    counts = count_operations(Involution3d(16, 3), (16, 2, 3, 4))
    assert counts.involution == 16 * 24 * 27
    assert counts.convolution == 24 * (16 * 4 + 4 * 27)
