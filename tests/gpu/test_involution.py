# SPDX-License-Identifier: Apache-2.0
"""Involution's schedules for GPUs: what they compute, run on this CPU, and what they need of a GPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import build_cuda, run_cuda
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm
from tvm import te, topi

from tvm_involution.bench.machine_code import compile_kernel, nvcc_present
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import Involution, InvolutionNCHW, SpannedInvolution
from tvm_involution.te import involution2d, involution2d_output_size, pack_weight, spanned_involution2d

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


def make_case(rng, case, dtype, packed, layout="NHWC"):
    """Return the program of an involution, batch norm and ReLU, its inputs and what it computes."""
    n, groups, group_channels, h, w, kernel_size, stride, padding, dilation = case
    channels = groups * group_channels
    oh, ow = (involution2d_output_size(size, kernel_size, stride, padding, dilation) for size in (h, w))
    x = as_dtype(rng.standard_normal((n, channels, h, w)), dtype)
    kernel = as_dtype(rng.standard_normal((n, groups, kernel_size, kernel_size, oh, ow)), dtype)
    scale, shift = (as_dtype(rng.standard_normal((1, channels, 1, 1)), dtype) for _ in range(2))
    expected = reference(x, kernel, (stride,) * 2, (padding,) * 2, (dilation,) * 2)
    expected = np.maximum(expected * scale.astype("float64") + shift.astype("float64"), 0)
    if layout == "NHWC":
        x, scale, shift, expected = (array.transpose(0, 2, 3, 1) for array in (x, scale, shift, expected))
        kernel = kernel.transpose(0, 4, 5, 1, 2, 3)
    if packed:
        kernel = kernel.reshape((n, oh, ow, -1) if layout == "NHWC" else (n, -1, oh, ow))
    arrays = [x, kernel, scale, shift]
    inputs = [te.placeholder(array.shape, dtype, f"input{i}") for i, array in enumerate(arrays)]
    out = involution2d(*inputs[:2], stride, padding, dilation, layout, kernel_size)
    out = topi.nn.relu(topi.add(topi.multiply(out, inputs[2]), inputs[3]))
    return te.create_prim_func([*inputs, out]), [np.ascontiguousarray(array) for array in arrays], expected


def make_spanned_case(rng, case, hidden, dtype, lanes=16):
    """Return the program of a kernel's span, involution and ReLU in NHWC, its inputs and what it computes."""
    n, groups, group_channels, h, w, kernel_size, stride, padding, dilation = case
    channels, taps = groups * group_channels, kernel_size**2
    oh, ow = (involution2d_output_size(size, kernel_size, stride, padding, dilation) for size in (h, w))
    x, pixels, weight, bias = (
        as_dtype(rng.standard_normal(shape), dtype)
        for shape in ((n, h, w, channels), (n, oh, ow, hidden), (groups * taps, hidden, 1, 1), (1, 1, 1, groups * taps))
    )
    # rounded where the pipeline without fusion rounds
    kernel = as_dtype(np.einsum("nijr,kr->nijk", pixels.astype("float64"), weight[:, :, 0, 0].astype("float64")), dtype)
    kernel = as_dtype(kernel.astype("float64") + bias.astype("float64"), dtype)
    kernel = kernel.reshape(n, oh, ow, groups, kernel_size, kernel_size).transpose(0, 3, 4, 5, 1, 2)
    expected = reference(x.transpose(0, 3, 1, 2), kernel, (stride,) * 2, (padding,) * 2, (dilation,) * 2)
    arrays = [x, pixels, pack_weight(weight, lanes), bias]
    inputs = [te.placeholder(array.shape, dtype, f"input{i}") for i, array in enumerate(arrays)]
    out = topi.nn.relu(spanned_involution2d(*inputs, kernel_size, stride, padding, dilation))
    return te.create_prim_func([*inputs, out]), arrays, np.maximum(expected, 0).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_spanned(rng, case, dtype):
    hidden, lanes = int(rng.choice([5, 16, 24])), int(rng.choice([4, 16, 64]))
    print("hidden channels", hidden, "lanes", lanes)
    func, arrays, expected = make_spanned_case(rng, case, hidden, dtype, lanes)
    own = target(str(rng.choice(ARCHITECTURES)))
    schedule, rule = default_schedule(func, own)
    assert rule == "SpannedInvolution"
    assert relative_norm(run_cuda(schedule, arrays, own)[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_default(rng, case, dtype, layout):
    func, arrays, expected = make_case(rng, case, dtype, packed=bool(rng.integers(2)), layout=layout)
    own = target(str(rng.choice(ARCHITECTURES)))
    schedule, rule = default_schedule(func, own)
    assert rule == ("Involution" if layout == "NHWC" else "InvolutionNCHW")
    assert relative_norm(run_cuda(schedule, arrays, own)[0], expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_points_of_the_space(rng, dtype):
    case = CASES[int(rng.integers(len(CASES)))]
    for rule, made in (
        (Involution(), make_case(rng, case, dtype, packed=True)),
        (InvolutionNCHW(), make_case(rng, case, dtype, packed=True, layout="NCHW")),
        (SpannedInvolution(), make_spanned_case(rng, case, 12, dtype)),
    ):
        func, arrays, expected = made
        spaces = rule.apply(func, target("sm_80"), tunable=True)
        for space in rng.choice(len(spaces), 2):
            trace = spaces[space].trace
            for instruction in trace.insts:
                if instruction.kind.name == "SampleCategorical":
                    trace = trace.with_decision(instruction, int(rng.integers(len(instruction.attrs[0]))), True)
            schedule = tvm.s_tir.Schedule(func)
            trace.apply_to_schedule(schedule, remove_postproc=False)
            assert relative_norm(run_cuda(schedule, arrays, target("sm_80"))[0], expected) < TOLERANCE[dtype]


# N, C, H and W, kernel, stride, hidden channels: of RedNet-50
LAYERS = [(32, 32, 112, 3, 1, 8), (32, 64, 56, 7, 1, 16), (1, 128, 56, 7, 2, 32), (32, 512, 7, 7, 1, 128)]


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_layers_of_rednet_need_no_more_than_a_gpu_has(layer, dtype):
    n, channels, size, kernel_size, stride, hidden = layer
    out, taps = -(-size // stride), channels // 16 * kernel_size**2
    shapes = [(n, size, size, channels), (n, out, out, hidden), (-(-taps // 16), 1, 1, hidden, 16), (1, 1, 1, taps)]
    inputs = [te.placeholder(shape, dtype, f"input{i}") for i, shape in enumerate(shapes)]
    fused = spanned_involution2d(*inputs, kernel_size, stride, kernel_size // 2)
    kernel = te.placeholder((n, out, out, taps), dtype, "kernel")
    given = involution2d(inputs[0], kernel, stride, kernel_size // 2, 1, "NHWC", kernel_size)
    for func in (te.create_prim_func([*inputs, fused]), te.create_prim_func([inputs[0], kernel, given])):
        architecture = ARCHITECTURES[channels // 64 % 3]
        schedule, _ = default_schedule(func, target(architecture))
        code = compile_kernel(build_cuda(schedule, target(architecture)).source, architecture)
        assert code.spilled_bytes == code.stack_bytes == 0
        assert code.shared_bytes <= 48 << 10
        assert code.threads <= 256
        assert code.resident_threads(architecture) >= code.threads
