# SPDX-License-Identifier: Apache-2.0
"""Involution with its span on tensor cores: what it computes, run on this CPU, and what it needs of a GPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import build_cuda, run_cuda
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm
from tvm import s_tir, te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import TensorCoreInvolution, mma_fragments
from tvm_involution.te import involution2d_output_size, pack_span_mma, spanned_involution2d_mma

TF32 = 2e-3  # tf32 keeps 10 bits; a product of two truncated numbers is off by less than 2^-9
# N, groups, channels of a group, H, W, kernel, stride, padding, dilation, hidden channels
CASES = [
    (1, 4, 16, 14, 14, (7, 7), (1, 1), 3, (1, 1), 40),
    (2, 4, 16, 13, 15, (7, 7), (2, 2), 3, (1, 1), 16),
    (2, 3, 5, 9, 12, (3, 3), (1, 1), 1, (1, 1), 7),
    (2, 6, 1, 8, 10, (3, 5), (2, 1), 2, (2, 3), 33),
    (1, 2, 4, 6, 5, (1, 1), (1, 1), 0, (1, 1), 64),
    (1, 1, 24, 16, 24, (5, 5), (1, 1), 4, (2, 2), 130),
    (3, 2, 16, 7, 7, (9, 9), (1, 1), 4, (1, 1), 12),
]


def target(architecture: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "cuda", "arch": architecture}, host="llvm")


def make_case(rng, case, dtype: str, own: tvm.target.Target):
    """Return the program of a span, involution, batch norm and ReLU, its inputs and what it computes."""
    n, groups, group_channels, h, w, kernel_size, stride, padding, dilation, hidden = case
    channels, taps = groups * group_channels, groups * kernel_size[0] * kernel_size[1]
    out = (
        involution2d_output_size(size, kernel_size[axis], stride[axis], padding, dilation[axis])
        for axis, size in enumerate((h, w))
    )
    oh, ow = out
    shapes = ((n, h, w, channels), (n, oh, ow, hidden), *[(1, 1, 1, channels)] * 2, (taps, hidden, 1, 1), (taps,))
    x, pixels, scale, shift, weight, bias = (as_dtype(rng.standard_normal(shape), dtype) for shape in shapes)
    exact = [array.astype(np.float64) for array in (x, pixels, weight[:, :, 0, 0], bias)]
    kernel = (exact[1] @ exact[2].T + exact[3]).reshape(n, oh, ow, groups, *kernel_size).transpose(0, 3, 4, 5, 1, 2)
    expected = reference(exact[0].transpose(0, 3, 1, 2), kernel, stride, (padding,) * 2, dilation)
    expected = np.maximum(expected.transpose(0, 2, 3, 1) * scale.astype(np.float64) + shift.astype(np.float64), 0)
    fragments = mma_fragments(own, dtype, tf32=True, channels=hidden)
    arrays = [x, pixels, *pack_span_mma(weight, bias, kernel_size, fragments), scale, shift]
    inputs = [te.placeholder(array.shape, str(array.dtype), f"input{i}") for i, array in enumerate(arrays)]
    result = spanned_involution2d_mma(*inputs[:4], kernel_size, groups, fragments, stride, padding, dilation)
    result = topi.nn.relu(topi.add(topi.multiply(result, inputs[4]), inputs[5]))
    return te.create_prim_func([*inputs, result]), arrays, expected


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "architecture"),
    [("float16", "sm_75"), ("float16", "sm_90a"), ("bfloat16", "sm_80"), ("float32", "sm_80")],
)
def test_default(rng, case, dtype, architecture):
    own = target(architecture)
    func, arrays, expected = make_case(rng, case, dtype, own)
    schedule, rule = default_schedule(func, own)
    assert rule == "TensorCoreInvolution"
    built = build_cuda(schedule, own)
    assert "mma.sync" in built.source
    assert relative_norm(run_cuda(built, arrays, own)[0], expected) < (TF32 if dtype == "float32" else TOLERANCE[dtype])
