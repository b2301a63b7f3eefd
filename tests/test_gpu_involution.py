# SPDX-License-Identifier: Apache-2.0
"""Involution's schedules for GPUs: what they compute, run on this CPU, and what they need of a GPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import run_cuda
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm
from tvm import te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import Involution
from tvm_involution.te import involution2d, involution2d_output_size

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")

# N, groups, channels of a group, H, W, kernel, stride, padding, dilation
CASES = [
    (1, 4, 16, 14, 7, 7, 1, 3, 1),
    (2, 2, 16, 13, 15, 7, 2, 3, 1),
    (1, 3, 5, 9, 11, 3, 1, 1, 1),
    (2, 6, 1, 5, 8, 3, 2, 0, 2),
    (1, 2, 4, 6, 5, 1, 1, 0, 1),
    (1, 1, 24, 12, 10, 5, 1, 4, 2),
]
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a")


def target(architecture: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "cuda", "arch": architecture}, host="llvm")


def make_case(rng, case, dtype, packed):
    """Return the program of an involution, batch norm and ReLU in NHWC, its inputs and what it computes."""
    n, groups, group_channels, h, w, kernel_size, stride, padding, dilation = case
    channels = groups * group_channels
    oh, ow = (involution2d_output_size(size, kernel_size, stride, padding, dilation) for size in (h, w))
    x = as_dtype(rng.standard_normal((n, channels, h, w)), dtype)
    kernel = as_dtype(rng.standard_normal((n, groups, kernel_size, kernel_size, oh, ow)), dtype)
    scale, shift = (as_dtype(rng.standard_normal((1, 1, 1, channels)), dtype) for _ in range(2))
    expected = reference(x, kernel, (stride,) * 2, (padding,) * 2, (dilation,) * 2).transpose(0, 2, 3, 1)
    expected = np.maximum(expected * scale.astype("float64") + shift.astype("float64"), 0)
    kernel = kernel.transpose(0, 4, 5, 1, 2, 3)
    arrays = [x.transpose(0, 2, 3, 1), kernel.reshape(n, oh, ow, -1) if packed else kernel, scale, shift]
    inputs = [te.placeholder(array.shape, dtype, f"input{i}") for i, array in enumerate(arrays)]
    out = involution2d(*inputs[:2], stride, padding, dilation, "NHWC", kernel_size)
    out = topi.nn.relu(topi.add(topi.multiply(out, inputs[2]), inputs[3]))
    return te.create_prim_func([*inputs, out]), [np.ascontiguousarray(array) for array in arrays], expected


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_default(rng, case, dtype):
    func, arrays, expected = make_case(rng, case, dtype, packed=bool(rng.integers(2)))
    own = target(str(rng.choice(ARCHITECTURES)))
    schedule, rule = default_schedule(func, own)
    assert rule == "Involution"
    assert relative_norm(run_cuda(schedule, arrays, own)[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_points_of_the_space(rng, dtype):
    func, arrays, expected = make_case(rng, CASES[int(rng.integers(len(CASES)))], dtype, packed=True)
    spaces = Involution().apply(func, target("sm_80"), tunable=True)
    for space in rng.choice(len(spaces), 3):
        trace = spaces[space].trace
        for instruction in trace.insts:
            if instruction.kind.name == "SampleCategorical":
                trace = trace.with_decision(instruction, int(rng.integers(len(instruction.attrs[0]))), True)
        schedule = tvm.s_tir.Schedule(func)
        trace.apply_to_schedule(schedule, remove_postproc=False)
        assert relative_norm(run_cuda(schedule, arrays, target("sm_80"))[0], expected) < TOLERANCE[dtype]
