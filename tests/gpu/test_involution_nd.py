# SPDX-License-Identifier: Apache-2.0
"""Involution's schedules for GPUs along one and three axes, run on this CPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import run_cuda
from programs import TOLERANCE, as_dtype, random_point
from reference import involution as reference
from reference import relative_norm
from tvm import te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import Involution, InvolutionNCHW
from tvm_involution.te import involution, involution2d_output_size

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")

# N, groups, channels of a group, size, kernel, stride, padding, dilation
CASES = [
    (2, 2, 16, (28,), (7,), (1,), (3,), (1,)),
    (1, 3, 5, (13,), (4,), (2,), (3,), (2,)),
    (1, 2, 16, (4, 7, 6), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    (2, 3, 5, (5, 6, 7), (2, 3, 5), (2, 1, 3), (0, 2, 1), (2, 2, 1)),
    (1, 6, 1, (3, 8, 5), (3, 1, 3), (1, 2, 1), (1, 0, 0), (1, 1, 2)),
]
TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")


def make_case(rng, case, dtype, last):
    """Return the program of an involution, a scale and ReLU, its inputs and what it computes."""
    n, groups, group_channels, size, kernel_size, *geometry = case
    axes, channels = len(size), groups * group_channels
    out = tuple(map(involution2d_output_size, size, kernel_size, *geometry))
    x = as_dtype(rng.standard_normal((n, channels, *size)), dtype)
    kernel = as_dtype(rng.standard_normal((n, groups, *kernel_size, *out)), dtype)
    scale = as_dtype(rng.standard_normal((1, channels, *(1,) * axes)), dtype)
    expected = np.maximum(reference(x, kernel, *geometry) * scale.astype("float64"), 0)
    kernel = kernel.reshape(n, -1, *out)
    space = "DHW"[-axes:]
    layout = f"N{space}C" if last else f"NC{space}"
    arrays = [x, kernel, scale]
    if last:
        arrays, expected = [np.moveaxis(array, 1, -1) for array in arrays], np.moveaxis(expected, 1, -1)
    packed = kernel_size
    if last and rng.integers(2):
        arrays[1], packed = arrays[1].reshape(n, *out, groups, *kernel_size), None
    inputs = [te.placeholder(array.shape, dtype, f"input{i}") for i, array in enumerate(arrays)]
    sums = involution(inputs[0], inputs[1], *geometry, layout, packed)
    func = te.create_prim_func([*inputs, topi.nn.relu(topi.multiply(sums, inputs[2]))])
    return func, [np.ascontiguousarray(array) for array in arrays], expected


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_default(rng, case, last):
    dtype = str(rng.choice(["float32", "float16", "bfloat16"]))
    print(dtype)
    func, arrays, expected = make_case(rng, case, dtype, last)
    schedule, rule = default_schedule(func, TARGET)
    assert rule == ("Involution" if last else "InvolutionNCHW")
    assert relative_norm(run_cuda(schedule, arrays, TARGET)[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_point_of_the_space(rng, case, last):
    func, arrays, expected = make_case(rng, case, "float32", last)
    rule = Involution() if last else InvolutionNCHW()
    point = random_point(rng, func, rule.apply(func, TARGET, tunable=True))
    assert relative_norm(run_cuda(point, arrays, TARGET)[0], expected) < TOLERANCE["float32"]
