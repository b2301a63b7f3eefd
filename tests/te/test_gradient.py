# SPDX-License-Identifier: Apache-2.0
"""The gradients of the aggregation as expressions, against autograd of a plain involution."""

from __future__ import annotations

import pytest
import torch
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from tvm import te as tvm_te

from tvm_involution import UserError, te
from tvm_involution.nn import involution2d as torch_involution2d


@pytest.mark.parametrize(
    ("shape", "groups", "kernel_size", "stride", "padding", "dilation"),
    [
        ((2, 6, 7, 6), 2, (3, 3), (1, 1), (1, 1), (1, 1)),
        ((1, 4, 8, 9), 4, (2, 5), (2, 3), (1, 2), (1, 1)),
        ((1, 6, 9, 9), 3, (3, 3), (2, 1), (2, 0), (2, 2)),
    ],
)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_gradients(rng, shape, groups, kernel_size, stride, padding, dilation, dtype):
    out = [te.involution2d_output_size(*v) for v in zip(shape[2:], kernel_size, stride, padding, dilation, strict=True)]
    x = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
    kernel = torch.from_numpy(rng.standard_normal((shape[0], groups, *kernel_size, *out))).requires_grad_()
    # an involution written with slices and autograd alone, so that our own backward formula is tested too
    plain = _plain_involution(x, kernel, stride, padding, dilation)
    grad = torch.from_numpy(rng.standard_normal(plain.shape))
    grad_x, grad_kernel = torch.autograd.grad(plain, (x, kernel), grad)
    ours = torch_involution2d(x, kernel, stride, padding, dilation)
    for actual, expected in zip(torch.autograd.grad(ours, (x, kernel), grad), (grad_x, grad_kernel), strict=True):
        assert relative_norm(actual.numpy(), expected.numpy()) < 1e-12
    geometry = (stride, padding, dilation)
    arrays = [as_dtype(t.detach().numpy(), dtype) for t in (grad, kernel, x)]
    actual = run_expression(lambda g, k: te.involution2d_grad_input(g, k, shape[2:], *geometry), arrays[:2], dtype)
    assert relative_norm(actual, grad_x.numpy()) < TOLERANCE[dtype]
    actual = run_expression(
        lambda g, d: te.involution2d_grad_kernel(g, d, groups, kernel_size, *geometry), [arrays[0], arrays[2]], dtype
    )
    assert relative_norm(actual, grad_kernel.numpy()) < TOLERANCE[dtype]


def _plain_involution(x, kernel, stride, padding, dilation):
    n, channels = x.shape[:2]
    groups, kernel_h, kernel_w, out_h, out_w = kernel.shape[1:]
    columns = torch.nn.functional.unfold(x, (kernel_h, kernel_w), dilation, padding, stride)
    windows = columns.view(n, groups, channels // groups, kernel_h * kernel_w, out_h, out_w)
    return (kernel.flatten(2, 3).unsqueeze(2) * windows).sum(3).view(n, channels, out_h, out_w)


@pytest.mark.parametrize(
    ("grad", "x", "arguments", "words"),
    [
        ((1, 6, 4, 4), (1, 4, 4, 4), (2, 3, 1, 1), r"grad must have shape \[1, 4, 4, 4\], got \[1, 6, 4, 4\]"),
        ((1, 4, 4, 4), (1, 4, 4, 4), (2, 3), r"grad must have shape \[1, 4, 2, 2\]"),
        ((1, 4, 4, 4), (1, 4, 4, 4), (3, 3, 1, 1), "channels of x must be a multiple of 3 groups"),
        ((1, 4, 4, 4), (1, 4, 4), (2, 3, 1, 1), "rank 4"),
    ],
)
def test_errors_of_the_gradient_by_the_kernel(grad, x, arguments, words):
    with pytest.raises(UserError, match=words):
        te.involution2d_grad_kernel(tvm_te.placeholder(grad), tvm_te.placeholder(x), *arguments)


@pytest.mark.parametrize(
    ("grad", "kernel", "arguments", "words"),
    [
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), ((5, 4), 1, 1), r"grad must have shape \[1, 4, 5, 4\]"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 3), ((4, 4), 1, 1), r"kernel must have shape \[1, 2, 3, 3, 4, 4\]"),
        ((1, 4, 4, 4), (2, 2, 3, 3, 4, 4), ((4, 4), 1, 1), r"kernel must have shape \[1, 2, 3, 3, 4, 4\]"),
        ((1, 4, 4, 4), (1, 3, 3, 3, 4, 4), ((4, 4), 1, 1), "channels of grad must be a multiple of 3 groups"),
        ((1, 4, 4, 4), (1, 18, 4, 4), ((4, 4), 1, 1), "rank 6"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), ((4, 4, 4), 1, 1), "input_size"),
    ],
)
def test_errors_of_the_gradient_by_the_input(grad, kernel, arguments, words):
    with pytest.raises(UserError, match=words):
        te.involution2d_grad_input(tvm_te.placeholder(grad), tvm_te.placeholder(kernel), *arguments)
