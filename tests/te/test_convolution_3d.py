# SPDX-License-Identifier: Apache-2.0
"""Convolutions along three axes as matrix products, on CPUs and GPUs, against torch in float64."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import torch
import tvm
from cuda_emulator import run_cuda
from programs import TOLERANCE, as_dtype, random_point, run_expression
from reference import relative_norm
from tvm import te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu import PackedGemm
from tvm_involution.target import resolve_target
from tvm_involution.te import (
    MmaFragments,
    conv2d_gemm,
    conv2d_mma,
    conv2d_packed,
    conv2d_windows,
    pack_weight,
    pack_weight_gemm,
    pack_weight_mma,
)

# N, I, O, size, kernel, stride, padding before and behind each axis, dilation
CASES = [
    (2, 5, 20, (4, 5, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1, 1, 1, 1), (1, 1, 1)),
    (1, 16, 40, (3, 4, 7), (1, 1, 1), (1, 1, 1), (0, 0, 0, 0, 0, 0), (1, 1, 1)),
    (2, 3, 16, (7, 6, 9), (2, 1, 3), (2, 3, 1), (1, 0, 2, 0, 1, 2), (1, 1, 2)),
    (1, 8, 16, (5, 8, 8), (3, 3, 3), (1, 2, 2), (2, 1, 1, 2, 1, 1), (2, 1, 1)),
]


def make_case(rng, case, dtype):
    """Return x (N, D, H, W, I), the weight and the convolution's values."""
    n, in_channels, out_channels, size, kernel_size, stride, padding, dilation = case
    x = as_dtype(rng.standard_normal((n, in_channels, *size)), dtype)
    weight = as_dtype(rng.standard_normal((out_channels, in_channels, *kernel_size)), dtype)
    wide = [torch.from_numpy(array.astype("float64")) for array in (x, weight)]
    both = [end for axis in (2, 1, 0) for end in (padding[axis], padding[3 + axis])]
    expected = torch.conv3d(torch.nn.functional.pad(wide[0], both), wide[1], None, stride, 0, dilation)
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)), weight, np.moveaxis(expected.numpy(), 1, -1)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_packed(rng, case, rule):
    for dtype in ("float32", str(rng.choice(["float16", "bfloat16"]))):
        x, weight, expected = make_case(rng, case, dtype)
        pairs = dtype == "bfloat16" and not rule
        packed = pack_weight(weight, 16, 2 if pairs else 1)
        actual = run_expression(
            lambda x, w: conv2d_packed(x, w, case[2], *case[5:], kernel_size=case[4]), [x, packed], dtype, rule
        )
        assert relative_norm(actual, expected) < TOLERANCE[dtype], dtype


def test_a_point_of_the_space_of_cpus(rng):
    x, weight, expected = make_case(rng, CASES[0], "float32")
    inputs = [te.placeholder(array.shape, name=f"input{i}") for i, array in enumerate((x, pack_weight(weight, 16)))]
    out = conv2d_packed(*inputs, CASES[0][2], *CASES[0][5:], kernel_size=CASES[0][4])
    func, target = te.create_prim_func([*inputs, out]), resolve_target("llvm")
    assert default_schedule(func, target)[1] == "PackedGemm"
    point = random_point(rng, func, PackedGemm().apply(func, target, tunable=True))
    library = tvm.compile(point.mod["main"].with_attr("global_symbol", "main"), target=target)
    result = tvm.runtime.empty(expected.shape)
    library["main"](*map(tvm.runtime.tensor, (x, pack_weight(weight, 16))), result)
    assert relative_norm(result.numpy(), expected) < 1e-5


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_gpu(rng, case, dtype):
    x, weight, expected = make_case(rng, case, dtype)
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")
    fragments = MmaFragments("float16", 16) if dtype == "float16" else None
    packed = pack_weight_mma(weight, fragments, 1) if fragments is not None else pack_weight_gemm(weight, 16)
    inputs = [te.placeholder(array.shape, dtype, f"input{i}") for i, array in enumerate((x, packed))]
    windows = conv2d_windows(inputs[0], *case[4:])
    if fragments is not None:
        out = conv2d_mma(windows, inputs[1], case[2], fragments, dtype)
    else:
        out = conv2d_gemm(windows, inputs[1], case[2], dtype)
    func = te.create_prim_func([*inputs, topi.nn.relu(out)])
    schedule, rule = default_schedule(func, target)
    assert rule == ("CudaCoreGemm" if fragments is None else "TensorCoreGemm")
    actual = run_cuda(schedule, [x, packed], target)[0]
    assert relative_norm(actual, np.maximum(expected, 0)) < TOLERANCE[dtype]
