# SPDX-License-Identifier: Apache-2.0
"""Kernel generation, the whole layer, attention and gradients as expressions."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm

from tvm_involution import UserError, te
from tvm_involution.nn import involution2d as torch_involution2d
from tvm_involution.nn import local_attention2d as torch_attention


def generator_arrays(rng, channels, groups, taps, reduced):
    return {
        "reduce": rng.standard_normal((reduced, channels)),
        "scale": rng.uniform(0.5, 1.5, reduced),
        "shift": rng.standard_normal(reduced),
        "mean": rng.standard_normal(reduced),
        "variance": rng.uniform(0.5, 1.5, reduced),
        "span": rng.standard_normal((groups * taps, reduced)),
        "bias": rng.standard_normal(groups * taps),
    }


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("size", "stride"), [((6, 8), (1, 1)), ((6, 8), (2, 2)), ((7, 5), (2, 2)), ((8, 7), (3, 2))])
@pytest.mark.parametrize("whole", [False, True], ids=["kernel", "layer"])
def test_generation(rng, dtype, layout, size, stride, whole):
    n, channels, groups, kernel_size = 2, 12, 3, (3, 5)
    x = as_dtype(rng.standard_normal((n, channels, *size)), dtype)
    arrays = {k: as_dtype(v, dtype) for k, v in generator_arrays(rng, channels, groups, 15, 4).items()}
    exact = {k: v.astype(np.float64) for k, v in arrays.items()}
    factor = exact["scale"] / np.sqrt(exact["variance"] + 1e-5)
    kernel = reference.generate_kernel(
        x.astype(np.float64),
        exact["reduce"],
        factor,
        exact["shift"] - exact["mean"] * factor,
        exact["span"],
        exact["bias"],
        kernel_size,
        stride,
    )
    expected = reference.involution2d(x, kernel, stride, (1, 2)) if whole else kernel

    def expression(data, reduce, scale, shift, mean, variance, span, bias):
        norm = te.BatchNorm(scale, shift, mean, variance)
        generator = te.KernelGenerator(reduce, span, bias, kernel_size, norm)
        if whole:
            return te.generated_involution2d(data, generator, stride, (1, 2), layout=layout)
        return te.generate_kernel(data, generator, stride, layout)

    data = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    actual = run_expression(expression, [data, *arrays.values()], dtype)
    if layout == "NHWC":
        actual = actual.transpose(0, 3, 1, 2) if whole else actual.transpose(0, 3, 4, 5, 1, 2)
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


def test_generation_refuses_weights_that_do_not_fit():
    from tvm import te as tvm_te

    x, reduce = tvm_te.placeholder((1, 8, 4, 4)), tvm_te.placeholder((2, 9))
    span, bias = tvm_te.placeholder((9, 2)), tvm_te.placeholder((9,))
    with pytest.raises(UserError, match="do not fit"):
        te.generate_kernel(x, te.KernelGenerator(reduce, span, bias, (3, 3)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kernel_size", "heads", "dilation"), [((3, 3), 2, 1), ((5, 3), 3, 1), ((3, 3), 1, 2)])
def test_local_attention_is_an_involution(rng, dtype, kernel_size, heads, dilation):
    arrays = [as_dtype(rng.standard_normal((2, 6, 5, 7)), dtype) for _ in range(3)]
    expected = reference.local_attention(*(a.astype(np.float64) for a in arrays), kernel_size, heads, dilation)
    actual = run_expression(lambda q, k, v: te.local_attention2d(q, k, v, kernel_size, heads, dilation), arrays, dtype)
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


def test_torch_attention_through_the_operator(rng):
    arrays = [rng.standard_normal((2, 6, 5, 7)) for _ in range(3)]
    expected = reference.local_attention(*arrays, (3, 3), 2, 2)
    actual = torch_attention(*(torch.from_numpy(a) for a in arrays), 3, 2, 2)
    assert relative_norm(actual.numpy(), expected) < 1e-12


@pytest.mark.parametrize(
    ("shape", "groups", "kernel_size", "stride", "padding", "dilation"),
    [
        ((2, 6, 7, 6), 2, (3, 3), (1, 1), (1, 1), (1, 1)),
        ((1, 4, 8, 9), 4, (2, 5), (2, 3), (1, 2), (1, 1)),
        ((1, 6, 9, 9), 3, (3, 3), (2, 1), (2, 0), (2, 2)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
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
