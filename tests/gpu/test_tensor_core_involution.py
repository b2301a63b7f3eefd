# SPDX-License-Identifier: Apache-2.0
"""Involution with its span on tensor cores: what it computes, run on this CPU, and what it needs of a GPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from cuda_emulator import build_cuda, run_cuda
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm
from tvm import s_tir, te, topi
from tvm.s_tir import meta_schedule as ms

from tvm_involution.bench.machine_code import compile_kernel, nvcc_present
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.nn import Involution2d
from tvm_involution.relax import pipeline
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.gpu import TensorCoreInvolution, mma_fragments
from tvm_involution.schedules.rule import find_block
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


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
def test_points_of_the_space_as_records_hold_them(rng):
    own = target("sm_80")
    func, arrays, expected = make_case(rng, CASES[int(rng.integers(len(CASES)))], "float16", own)
    workload = ms.database.Workload(tvm.IRModule({"main": func}))
    spaces = TensorCoreInvolution().apply(func, own, tunable=True)
    assert tvm_ffi.structural_equal(spaces[0].mod, default_schedule(func, own)[0].mod)
    for space in rng.choice(len(spaces), 2):
        trace = spaces[space].trace
        for instruction in trace.insts:
            if instruction.kind.name == "SampleCategorical":
                trace = trace.with_decision(instruction, int(rng.integers(len(instruction.attrs[0]))), True)
        record = ms.database.TuningRecord(trace, workload, [1.0], own, ms.arg_info.ArgInfo.from_prim_func(func))
        point = s_tir.Schedule(func)
        restored = ms.database.TuningRecord.from_json(record.as_json(), workload)
        restored.trace.apply_to_schedule(point, remove_postproc=False)
        print(point.trace)
        assert relative_norm(run_cuda(point, arrays, own)[0], expected) < TOLERANCE["float16"]


# N, C, H and W, kernel, stride, hidden channels: of RedNet-50
LAYERS = [
    (32, 32, 112, 3, 1, 8),
    (32, 64, 56, 7, 1, 16),
    (8, 128, 56, 7, 2, 32),
    (32, 128, 28, 7, 1, 32),
    (8, 256, 28, 7, 2, 64),
    (32, 256, 14, 7, 1, 64),
    (8, 512, 14, 7, 2, 128),
    (32, 512, 7, 7, 1, 128),
    (1, 512, 7, 7, 1, 128),
]


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_layers_of_rednet_need_no_more_than_a_gpu_has(layer):
    n, channels, size, kernel_size, stride, hidden = layer
    architecture, dtype = [("sm_75", "float16"), ("sm_80", "bfloat16"), ("sm_90a", "float16")][hidden // 16 % 3]
    own, out, groups = target(architecture), -(-size // stride), channels // 16
    fragments = mma_fragments(own, dtype, channels=hidden)
    span = np.zeros((groups * kernel_size**2, hidden, 1, 1)), np.zeros(groups * kernel_size**2)
    weight, bias = (array.shape for array in pack_span_mma(*span, kernel_size, fragments))
    shapes = [(n, size, size, channels), (n, out, out, hidden), weight, bias]
    inputs = [te.placeholder(shape, "float32" if shape is bias else dtype, f"in{i}") for i, shape in enumerate(shapes)]
    result = spanned_involution2d_mma(*inputs, kernel_size, groups, fragments, stride, kernel_size // 2)
    schedule, rule = default_schedule(te.create_prim_func([*inputs, result]), own)
    assert rule == "TensorCoreInvolution"
    code = compile_kernel(build_cuda(schedule, own).source, architecture)
    assert code.spilled_bytes == code.stack_bytes == 0
    assert code.shared_bytes <= 48 << 10
    assert code.threads <= 256
    assert code.resident_threads(architecture) >= code.threads
    if code.instructions:  # cuobjdump is there
        assert code.instructions["HMMA"] >= 1


@pytest.mark.parametrize(
    ("size", "dtype", "architecture", "tf32", "fused"),
    [
        (14, "float16", "sm_75", False, True),
        (12, "bfloat16", "sm_80", False, True),
        (56, "float32", "sm_80", True, True),
        (14, "float32", "sm_80", False, False),
        (14, "bfloat16", "sm_75", False, False),
        # no box of this rule has whole rows of 17 pixels
        (17, "float16", "sm_80", False, False),
    ],
)
def test_the_pass_takes_what_tensor_cores_can(size, dtype, architecture, tf32, fused):
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(64), Involution2d(64, 7)).eval()
    mod = import_exported_program(export_module(layer, [torch.zeros(2, 64, size, size)]))
    own = target(architecture)
    mod = pipeline.run(mod, own, dtype=dtype, tf32=tf32, until="lower operators")
    spans = [func for name, func in mod.functions_items() if "spanned_involution2d" in name.name_hint]
    programs = [func for func in spans if find_block(s_tir.Schedule(func), "mma") is not None]
    assert bool(programs) == fused
    assert all(default_schedule(func, own)[1] == "TensorCoreInvolution" for func in programs)
