# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and aggregation in one program: as written, as scheduled, as fused by the pass."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
import tvm
from programs import TOLERANCE, as_dtype, random_point
from reference import relative_norm
from tvm import te, tirx, topi

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.nn import Involution2d
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu import SpannedInvolution
from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.target import reference_cpu, resolve_target
from tvm_involution.te import (
    involution2d_output_size,
    pack_paired_span,
    pack_weight,
    paired_spanned_involution2d,
    spanned_involution2d,
)

AVX2 = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 2}'
# N, OH, OW, groups, channels of a group, R, kernel, stride, lanes
CASES = [
    (1, 8, 14, 4, 16, 16, 7, 1, 16),
    (2, 5, 9, 3, 5, 7, 3, 1, 32),
    (1, 7, 7, 2, 16, 10, 7, 2, 32),
    (1, 6, 11, 1, 1, 4, 1, 1, 32),
]


class Program:
    """A case with its numbers, and an epilogue."""

    def __init__(self, rng, case, dtype: str, inner: str | None, pairs: bool, whole_packs: bool) -> None:
        n, oh, ow, groups, group_channels, r, k, stride, lanes = case
        channels, spanned = groups * group_channels, groups * k * k
        shapes = ((n, oh * stride, ow * stride, channels), (n, oh, ow, r), (1, 1, 1, spanned), (1, 1, 1, channels))
        x, hidden, bias, scale = (as_dtype(rng.standard_normal(shape), dtype) for shape in shapes)
        weight = as_dtype(rng.standard_normal((spanned, r, 1, 1)) / np.sqrt(r), dtype)
        exact = [a.astype(np.float64) for a in (x, hidden, bias, scale, weight)]
        kernel = exact[1] @ exact[4][:, :, 0, 0].T + exact[2]
        kernel = kernel.reshape(n, oh, ow, groups, k, k).transpose(0, 3, 4, 5, 1, 2)
        sums = reference.involution2d(exact[0].transpose(0, 3, 1, 2), kernel, (stride,) * 2, ((k - 1) // 2,) * 2)
        self.expected = np.maximum(sums.transpose(0, 2, 3, 1) * exact[3], 0)
        if whole_packs:
            # what lies behind the kernel must not matter
            behind = np.full((1, 1, 1, -spanned % lanes), np.nan, bias.dtype)
            bias = np.concatenate([bias, behind], axis=3)
        self.arrays = [x, hidden, pack_weight(weight, lanes, 2 if pairs else 1), bias, scale]
        inputs = [te.placeholder(array.shape, str(array.dtype), f"in{i}") for i, array in enumerate(self.arrays)]
        out = spanned_involution2d(*inputs[:4], k, stride, (k - 1) // 2, 1, inner, groups)
        self.func = te.create_prim_func([*inputs, topi.nn.relu(topi.multiply(out, inputs[4]))])
        self.dtype = dtype

    def error(self, func: tirx.PrimFunc, target: tvm.target.Target) -> float:
        return error_of(func, self.arrays, self.expected, target)


def error_of(func: tirx.PrimFunc, arrays: list[np.ndarray], expected: np.ndarray, target: tvm.target.Target) -> float:
    library = lowering.build(func.with_attr("global_symbol", "main"), target)
    result = tvm.runtime.tensor(np.full(expected.shape, np.nan, arrays[0].dtype))
    library["main"](*map(tvm.runtime.tensor, arrays), result)
    return relative_norm(result.numpy().astype(np.float64), expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "inner"), [("float32", None), ("bfloat16", None), ("float16", "float32")])
@pytest.mark.parametrize("whole_packs", [False, True], ids=["kernel", "whole packs"])
def test_as_written(rng, case, dtype, inner, whole_packs):
    program = Program(rng, case, dtype, inner, pairs=False, whole_packs=whole_packs)
    assert program.error(program.func, resolve_target("llvm")) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "bfloat16 pairs"])
@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
def test_schedules(rng, case, dtype, target):
    dtype, _, pairs = dtype.partition(" ")
    resolved = resolve_target(target)
    if pairs and not has_dot_bf16(resolved):
        pytest.skip("no AVX512_BF16")
    program = Program(rng, case, dtype, "float32", bool(pairs), whole_packs=True)
    default, spaces = (SpannedInvolution().apply(program.func, resolved, tunable) for tunable in (False, True))
    assert default_schedule(program.func, resolved)[1] == "SpannedInvolution"
    assert program.error(default.mod["main"], resolved) < TOLERANCE[dtype]
    point = random_point(rng, program.func, spaces)
    assert program.error(point.mod["main"], resolved) < TOLERANCE[dtype]


# N, H, W, groups, channels of a group, R, kernel, stride, padding, dilation of rows
PAIRED = [
    (1, 8, 14, 4, 16, 16, (7, 7), (1, 1), (3, 3), 1),
    (2, 9, 11, 2, 32, 7, (3, 3), (2, 2), (1, 1), 1),
    (1, 13, 10, 1, 16, 10, (7, 7), (2, 2), (3, 3), 2),
    (1, 7, 15, 3, 16, 5, (3, 5), (1, 3), (0, 2), 2),
    (2, 6, 12, 2, 16, 4, (2, 4), (3, 1), (1, 2), 1),
    (1, 5, 9, 1, 16, 6, (5, 1), (1, 2), (2, 0), 1),
    (1, 12, 12, 6, 16, 64, (7, 7), (2, 4), (3, 3), 1),
]


def paired_program(rng, case) -> tuple[tirx.PrimFunc, list[np.ndarray], np.ndarray]:
    """Return the program of a case with an epilogue, its inputs and what it computes."""
    n, h, w, groups, group_channels, r, kernel_size, stride, padding, dilation = case
    channels, taps = groups * group_channels, groups * kernel_size[0] * kernel_size[1]
    dilations = (dilation, 1)
    oh, ow = (
        involution2d_output_size(size, kernel_size[i], stride[i], padding[i], dilations[i])
        for i, size in enumerate((h, w))
    )
    shapes = ((n, h, w, channels), (n, oh, ow, r), (1, 1, 1, channels), (taps, r, 1, 1), (taps,))
    x, hidden, scale, weight, bias = (as_dtype(rng.standard_normal(shape), "bfloat16") for shape in shapes)
    exact = [a.astype(np.float64) for a in (x, hidden, scale, weight, bias)]
    kernel = (exact[1] @ exact[3][:, :, 0, 0].T + exact[4]).reshape(n, oh, ow, groups, *kernel_size)
    sums = reference.involution2d(
        exact[0].transpose(0, 3, 1, 2), kernel.transpose(0, 3, 4, 5, 1, 2), stride, padding, dilations
    )
    arrays = [x, hidden, *pack_paired_span(weight, bias, kernel_size, 32), scale]
    inputs = [te.placeholder(array.shape, str(array.dtype), f"in{i}") for i, array in enumerate(arrays)]
    out = paired_spanned_involution2d(*inputs[:4], kernel_size, groups, stride, padding, dilations)
    func = te.create_prim_func([*inputs, topi.nn.relu(topi.multiply(out, inputs[4]))])
    return func, arrays, np.maximum(sums.transpose(0, 2, 3, 1) * exact[2], 0)


@pytest.mark.parametrize("case", PAIRED, ids=str)
def test_pairs_as_written(rng, case):
    assert error_of(*paired_program(rng, case), reference_cpu()) < TOLERANCE["bfloat16"]


@pytest.mark.parametrize("case", PAIRED, ids=str)
def test_pairs_as_scheduled(rng, case):
    target = resolve_target("llvm")
    if not has_dot_bf16(target):
        pytest.skip("no AVX512_BF16")
    func, arrays, expected = paired_program(rng, case)
    schedule, rule = default_schedule(func, target)
    assert rule == "SpannedInvolution"
    assert error_of(schedule.mod["main"], arrays, expected, target) < TOLERANCE["bfloat16"]
    spaces = SpannedInvolution().apply(func, target, tunable=True)
    point = random_point(rng, func, spaces)
    assert error_of(point.mod["main"], arrays, expected, target) < TOLERANCE["bfloat16"]


def test_pairs_are_dot_products(rng):
    """All products by the instruction: those of the span by registers, of the aggregation by the kernel in memory."""
    target = tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4"})
    func = paired_program(rng, PAIRED[0])[0]
    schedule, _ = default_schedule(func, target)
    source = lowering.build(schedule.mod, target).mod.inspect_source("asm")
    aggregation = [line for line in source.splitlines() if "vdpbf16ps" in line and "{1to16}" in line]
    # 14 pixels by 4 pairs of a row's 7 columns
    assert len(aggregation) == 56
    assert not any("%rsp" in line for line in aggregation)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dilation": (1, 2)}, "neighbouring columns"),
        ({"groups": 8}, "a multiple of 16 channels"),
        ({"kernel_size": (7, 9), "padding": (3, 4)}, "taps are fewer than 4 groups of 7x10"),
        ({"stride": 2}, "hidden must have shape"),
        ({"kernel_size": 40}, "larger than the padded x"),
        ({"x": "float32"}, "pairs need bfloat16"),
    ],
)
def test_pairs_with_wrong_arguments(change, words):
    arguments = {"kernel_size": 7, "groups": 4, "padding": 3, **change}
    x = te.placeholder((1, 8, 14, 64), arguments.pop("x", "bfloat16"), "x")
    hidden = te.placeholder((1, 8, 14, 16), "bfloat16", "hidden")
    weight, bias = te.placeholder((7, 1, 1, 8, 32, 2), "bfloat16"), te.placeholder((1, 1, 1, 224), "float32")
    with pytest.raises(ti.UserError, match=words):
        paired_spanned_involution2d(x, hidden, weight, bias, **arguments)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_layer_is_one_kernel(tmp_path, rng, stride, dtype):
    """Half types on CPUs: the generated kernel is no tensor of its own, and the result is that of the module."""
    layer = torch.nn.Sequential(Involution2d(32, 7, stride), torch.nn.BatchNorm2d(32), torch.nn.ReLU()).eval()
    x = torch.randn(2, 32, 12, 10)
    compiled = ti.compile(layer, image_size=(12, 10), batch=2, dtype=dtype, debug_dump=tmp_path / "dump")
    compiled.save(tmp_path / "net.so")
    text = (tmp_path / "dump" / "3-lower-operators.py").read_text()
    assert "spanned_involution2d" in text and "relu" in text
    with torch.no_grad():
        expected = layer.double()(x.to(getattr(torch, dtype)).double()).numpy()
    actual = ti.load(tmp_path / "net.so")(x.to(getattr(torch, dtype)))
    assert relative_norm(actual.double().numpy(), expected) < TOLERANCE[dtype]
