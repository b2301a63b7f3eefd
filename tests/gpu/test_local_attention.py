# SPDX-License-Identifier: Apache-2.0
"""Local self-attention's schedule for GPUs, run on this CPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
import tvm_ffi
from attentions import full_attention
from cuda_emulator import run_cuda
from programs import TOLERANCE, as_dtype, random_point
from reference import relative_norm
from tvm import te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import LocalAttention
from tvm_involution.te import local_attention2d

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")

# N, heads, channels of a head of queries and of values, size, kernel, dilation, border
CASES = [
    (1, 2, 8, 8, (10, 14), (7, 7), (1, 1), "masked"),
    (2, 2, 8, 12, (7, 9), (3, 5), (1, 1), "shifted"),
    (1, 3, 5, 2, (9, 7), (3, 3), (2, 1), "zeros"),
    (2, 1, 4, 3, (8, 7), (3, 3), (2, 2), "shifted"),
    (1, 1, 1, 1, (1, 5), (1, 3), (1, 1), "masked"),
]
TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")


def make_case(rng, case, dtype):
    """Return the program with positions and a ReLU behind, its inputs and what it computes."""
    n, heads, head_channels, value_channels, size, kernel_size, dilation, border = case
    channels = heads * head_channels
    shapes = [(n, c, *size) for c in (channels, channels, heads * value_channels)]
    query, key, value = (as_dtype(rng.standard_normal(shape), dtype) for shape in shapes)
    sides = [2 * taps - 1 for taps in kernel_size] if border == "shifted" else kernel_size
    positions = [as_dtype(rng.standard_normal((heads, *sides)), dtype)]
    if border != "shifted":
        positions.append(as_dtype(rng.standard_normal((channels, *kernel_size)), dtype))
    expected = full_attention(query, key, value, kernel_size, heads, dilation, None, *positions, border=border)
    arrays = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (query, key, value)] + positions
    inputs = [te.placeholder(x.shape, dtype, f"input{i}") for i, x in enumerate(arrays)]
    added = dict(zip(("bias", "embedding"), inputs[3:], strict=False))
    out = local_attention2d(*inputs[:3], kernel_size, heads, dilation, layout="NHWC", **added, border=border)
    return te.create_prim_func([*inputs, topi.nn.relu(out)]), arrays, np.maximum(expected, 0).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_default(rng, case):
    dtype = str(rng.choice(["float32", "float16", "bfloat16"]))
    print(dtype)
    func, arrays, expected = make_case(rng, case, dtype)
    schedule, rule = default_schedule(func, TARGET)
    assert rule == "LocalAttention"
    assert relative_norm(run_cuda(schedule, arrays, TARGET)[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_points_of_the_space(rng, case):
    func, arrays, expected = make_case(rng, case, "float32")
    spaces = LocalAttention().apply(func, TARGET, tunable=True)
    assert tvm_ffi.structural_equal(spaces[0].mod, LocalAttention().apply(func, TARGET).mod)
    for space in (spaces[int(i)] for i in rng.choice(len(spaces), 2, replace=False)):
        point = random_point(rng, func, [space])
        assert relative_norm(run_cuda(point, arrays, TARGET)[0], expected) < TOLERANCE["float32"]
