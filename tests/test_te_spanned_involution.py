# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and aggregation in one program: as written, as scheduled, as fused by the pass."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
import tvm
from programs import TOLERANCE, as_dtype
from reference import relative_norm
from tvm import s_tir, te, tirx, topi

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.nn import Involution2d
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu import SpannedInvolution
from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.target import resolve_target
from tvm_involution.te import pack_weight, spanned_involution2d

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
        self.arrays = [x, hidden, pack_weight(weight, lanes, pairs), bias, scale]
        inputs = [te.placeholder(array.shape, str(array.dtype), f"in{i}") for i, array in enumerate(self.arrays)]
        out = spanned_involution2d(*inputs[:4], k, stride, (k - 1) // 2, 1, inner, groups)
        self.func = te.create_prim_func([*inputs, topi.nn.relu(topi.multiply(out, inputs[4]))])
        self.dtype = dtype

    def error(self, func: tirx.PrimFunc, target: tvm.target.Target) -> float:
        library = lowering.build(func.with_attr("global_symbol", "main"), target)
        result = tvm.runtime.empty(self.expected.shape, self.dtype)
        library["main"](*map(tvm.runtime.tensor, self.arrays), result)
        return relative_norm(result.numpy().astype(np.float64), self.expected)


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
    space = spaces[int(rng.integers(len(spaces)))]
    point = s_tir.Schedule(program.func, seed=int(rng.integers(1, 2**30)))
    s_tir.Trace(space.trace.insts, {}).apply_to_schedule(point, remove_postproc=False)
    print(point.trace)
    assert program.error(point.mod["main"], resolved) < TOLERANCE[dtype]


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
