# SPDX-License-Identifier: Apache-2.0
"""The PyTorch operator: values, gradients, dtypes, tracing and errors."""

from __future__ import annotations

import pytest
import torch
from reference import involution2d as reference
from reference import relative_norm

from tvm_involution import UserError
from tvm_involution.nn import involution2d

# N, C, G, H, W, kernel, stride, padding, dilation
CASES = [
    (1, 4, 1, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 6, 2, 7, 5, (7, 7), (1, 1), (3, 3), (1, 1)),
    (2, 5, 5, 6, 9, (3, 5), (2, 1), (1, 2), (1, 1)),
    (1, 32, 2, 9, 7, (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 9, 3, 11, 13, (2, 4), (3, 2), (0, 1), (2, 1)),
    (1, 6, 3, 9, 10, (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 3, 1, 4, 15, (1, 6), (1, 4), (0, 5), (1, 2)),
    (0, 4, 2, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1)),
]
# unit roundoff of the output's dtype; every sum is at least as fine as float32
TOLERANCE = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def make_inputs(rng, case, dtype=torch.float64):
    n, c, g, h, w, kernel_size, stride, padding, dilation = case
    out = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((h, w), kernel_size, stride, padding, dilation, strict=True)
    ]
    x = torch.from_numpy(rng.standard_normal((n, c, h, w))).to(dtype)
    return x, torch.from_numpy(rng.standard_normal((n, g, *kernel_size, *out))).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES[:-1], ids=str)
def test_matches_reference(rng, case, dtype):
    x, kernel = make_inputs(rng, case, dtype)
    actual = involution2d(x, kernel, *case[6:])
    assert actual.dtype == dtype
    assert relative_norm(actual.double().numpy(), reference(x.double(), kernel.double(), *case[6:])) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gpu_matches_reference(rng, dtype):
    case = CASES[3]
    x, kernel = make_inputs(rng, case, dtype)
    actual = involution2d(x.cuda(), kernel.cuda(), *case[6:]).double().cpu()
    assert relative_norm(actual.numpy(), reference(x.double(), kernel.double(), *case[6:])) < TOLERANCE[dtype]


def test_empty_batch(rng):
    x, kernel = make_inputs(rng, CASES[-1])
    assert involution2d(x, kernel, 1, 1).shape == (0, 4, 5, 5)


def test_ints_are_pairs(rng):
    x, kernel = make_inputs(rng, (1, 4, 2, 9, 9, (3, 3), (2, 2), (2, 2), (2, 2)))
    torch.testing.assert_close(involution2d(x, kernel, 2, 2, 2), involution2d(x, kernel, (2, 2), [2, 2], (2, 2)))


def test_memory_formats_agree(rng):
    x, kernel = make_inputs(rng, CASES[1])
    expected = involution2d(x, kernel, 1, 3)
    strided = kernel.permute(0, 4, 5, 1, 2, 3).contiguous().permute(0, 3, 4, 5, 1, 2)
    torch.testing.assert_close(involution2d(x.to(memory_format=torch.channels_last), strided, 1, 3), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_sums_are_kept_in_float32(dtype):
    """In the half type itself, adding ones stops at 2048 (float16) or 256 (bfloat16)."""
    x, kernel = torch.ones(1, 1, 64, 64, dtype=dtype), torch.ones(1, 1, 64, 64, 1, 1, dtype=dtype)
    assert involution2d(x, kernel).item() == 4096


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_gradients_are_summed_in_float32(dtype):
    """One input pixel is seen by 4096 windows, and one kernel value by 4096 channels."""
    x, kernel = torch.ones(1, 1, 1, 1, dtype=dtype), torch.ones(1, 1, 64, 64, 64, 64, dtype=dtype)
    x.requires_grad_()
    (padded := torch.nn.functional.pad(x, (63, 63, 63, 63))).retain_grad()
    involution2d(padded, kernel).sum().backward()
    assert padded.grad[0, 0, 63, 63] == 4096
    x, kernel = torch.ones(1, 4096, 1, 1, dtype=dtype), torch.ones(1, 1, 1, 1, 1, 1, dtype=dtype, requires_grad=True)
    involution2d(x, kernel).sum().backward()
    assert kernel.grad.item() == 4096


def test_nan_stays_and_infinity_times_zero_is_nan(rng):
    x, kernel = make_inputs(rng, (1, 2, 1, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1)))
    x[0, 0, 2, 2], x[0, 1, 0, 0] = float("nan"), float("inf")
    kernel[0, 0, 1, 1, 0, 0] = 0
    out = involution2d(x, kernel, 1, 1)
    assert out[0, 0, 1:4, 1:4].isnan().all() and not out[0, 0, 0].isnan().any()
    assert out[0, 1, 0, 0].isnan()


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[6]], ids=str)
def test_gradients(rng, case):
    x, kernel = (t.requires_grad_() for t in make_inputs(rng, case))

    def function(x, kernel):
        return involution2d(x, kernel, *case[6:])

    assert torch.autograd.gradcheck(function, (x, kernel))


def test_second_gradients(rng):
    x, kernel = (t.requires_grad_() for t in make_inputs(rng, (1, 2, 1, 3, 4, (3, 2), (1, 2), (1, 1), (1, 1))))
    assert torch.autograd.gradgradcheck(lambda x, kernel: involution2d(x, kernel, (1, 2), 1), (x, kernel))


@pytest.mark.parametrize("case", [CASES[4], CASES[-1]], ids=str)
def test_operator_is_registered_soundly(rng, case):
    """Schema, autograd registration, fake kernel and tracing with symbolic sizes, as torch checks them itself."""
    x, kernel = (t.requires_grad_() for t in make_inputs(rng, case, torch.float32))
    stride, padding, dilation = (list(pair) for pair in case[6:])
    torch.library.opcheck(torch.ops.tvm_involution.involution2d.default, (x, kernel, stride, padding, dilation))


class Aggregate(torch.nn.Module):
    def forward(self, x, kernel):
        return involution2d(x, kernel, 1, 1)


def test_export_keeps_the_operator_whole_with_any_batch(rng):
    x, kernel = make_inputs(rng, (2, 4, 2, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1)), torch.float32)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Aggregate(), (x, kernel), dynamic_shapes=({0: batch}, {0: batch}))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.tvm_involution.involution2d.default) == 1
    more_x, more_kernel = (torch.cat([t] * 3) for t in (x, kernel))
    torch.testing.assert_close(program.module()(more_x, more_kernel), involution2d(more_x, more_kernel, 1, 1))


def test_autocast_casts_both_inputs(rng):
    x, kernel = make_inputs(rng, CASES[0], torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = involution2d(x, kernel.bfloat16(), 1, 1)
        double = involution2d(x.double(), kernel.double(), 1, 1)
    assert mixed.dtype == torch.bfloat16 and double.dtype == torch.float64
    torch.testing.assert_close(mixed, involution2d(x.bfloat16(), kernel.bfloat16(), 1, 1))


@pytest.mark.parametrize(
    ("x_shape", "kernel_shape", "arguments", "words"),
    [
        ((4, 5, 5), (1, 1, 3, 3, 5, 5), {}, ["[4, 5, 5]", "(N, C, H, W)"]),
        ((1, 4, 5, 5), (1, 9, 5, 5), {}, ["[1, 9, 5, 5]", "(N, G, KH, KW, OH, OW)"]),
        ((1, 5, 5, 5), (1, 2, 3, 3, 3, 3), {}, ["5 channels", "2 groups"]),
        ((1, 4, 5, 5), (1, 0, 3, 3, 3, 3), {}, ["0 groups"]),
        ((1, 4, 5, 5), (1, 2, 3, 3, 5, 5), {}, ["(1, 2, 3, 3, 3, 3)", "[1, 2, 3, 3, 5, 5]"]),
        ((2, 4, 5, 5), (1, 2, 3, 3, 3, 3), {}, ["(2, 2, 3, 3, 3, 3)", "[1, 2, 3, 3, 3, 3]"]),
        ((1, 4, 5, 5), (1, 2, 3, 3, 3, 3), {"stride": 0}, ["stride", "at least 1", "[0, 0]"]),
        ((1, 4, 5, 5), (1, 2, 3, 3, 3, 3), {"padding": (1, -1)}, ["padding", "at least 0", "[1, -1]"]),
        ((1, 4, 5, 5), (1, 2, 3, 3, 3, 3), {"dilation": (1, 1, 1)}, ["dilation", "pair", "[1, 1, 1]"]),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_errors_show_what_came_and_what_was_expected(device, x_shape, kernel_shape, arguments, words):
    x, kernel = torch.zeros(x_shape, device=device), torch.zeros(kernel_shape, device=device)
    with pytest.raises(UserError) as caught:
        involution2d(x, kernel, **arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float16), (torch.int64, torch.int64)], ids=str)
def test_one_floating_dtype(dtypes):
    x, kernel = torch.zeros(1, 1, 3, 3, dtype=dtypes[0]), torch.zeros(1, 1, 1, 1, 3, 3, dtype=dtypes[1])
    with pytest.raises(UserError, match=f"{dtypes[0]} and {dtypes[1]}"):
        involution2d(x, kernel)
