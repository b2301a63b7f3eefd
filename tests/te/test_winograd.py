# SPDX-License-Identifier: Apache-2.0
"""Winograd's convolution, as written, as scheduled and at random points of its space, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from programs import TOLERANCE, as_dtype, random_point
from reference import relative_norm
from torch import nn
from torch.nn import functional as F
from tvm import te, tirx, topi

from tvm_involution import lowering
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.schedules.cpu.winograd import Winograd, strip_width
from tvm_involution.target import resolve_target
from tvm_involution.te.winograd import conv2d_winograd, pack_winograd_weight, winograd_matrices

AVX2 = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 2}'
# N, H, W, I, O, padding, lanes, strip
CASES = [
    (1, 16, 24, 32, 64, (1, 1, 1, 1), 32, 6),
    (2, 7, 9, 5, 20, (1, 1, 1, 1), 16, 1),
    (1, 13, 11, 16, 33, (0, 0, 0, 0), 16, 3),
    (3, 5, 30, 20, 18, (2, 0, 1, 3), 32, 4),
]


@pytest.mark.parametrize("m", [2, 4])
def test_matrices(rng, m):
    output, weight, data = winograd_matrices(m)
    signal, taps = rng.standard_normal(m + 2), rng.standard_normal(3)
    assert np.allclose(output @ ((weight @ taps) * (data @ signal)), np.correlate(signal, taps, "valid"), atol=1e-12)


class Program:
    """A case with its numbers: convolution, bias and ReLU."""

    def __init__(self, rng, case, m: int, dtype: str) -> None:
        n, h, w, i, o, padding, lanes, strip = case
        x, weight = (as_dtype(rng.standard_normal(shape), dtype) for shape in ((n, h, w, i), (o, i, 3, 3)))
        bias = as_dtype(rng.standard_normal((1, 1, 1, o)), dtype)
        exact = [torch.from_numpy(a.astype(np.float64)) for a in (x, weight, bias)]
        top, left, bottom, right = padding
        padded = F.pad(exact[0].permute(0, 3, 1, 2), (left, right, top, bottom))
        self.expected = (F.conv2d(padded, exact[1]).permute(0, 2, 3, 1) + exact[2]).relu().numpy()
        self.arrays = [x, pack_winograd_weight(weight.astype(np.float32), m, lanes), bias]
        types = (dtype, "float32", dtype)
        inputs = [te.placeholder(a.shape, t, f"in{k}") for k, (a, t) in enumerate(zip(self.arrays, types, strict=True))]
        out = topi.nn.relu(topi.add(conv2d_winograd(*inputs[:2], o, padding, strip), inputs[2]))
        self.func, self.dtype = te.create_prim_func([*inputs, out]), dtype

    def error(self, func: tirx.PrimFunc, target: tvm.target.Target) -> float:
        library = lowering.build(func.with_attr("global_symbol", "main"), target)
        result = tvm.runtime.empty(self.expected.shape, self.dtype)
        library["main"](*map(tvm.runtime.tensor, self.arrays), result)
        return relative_norm(result.numpy().astype(np.float64), self.expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("m", [2, 4])
def test_as_written(rng, case, dtype, m):
    program = Program(rng, case, m, dtype)
    assert program.error(program.func, resolve_target("llvm")) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
def test_schedules(rng, case, dtype, target):
    resolved, program = resolve_target(target), Program(rng, case, 4, dtype)
    default, spaces = (Winograd().apply(program.func, resolved, tunable) for tunable in (False, True))
    assert program.error(default.mod["main"], resolved) < TOLERANCE[dtype]
    point = random_point(rng, program.func, spaces)
    assert program.error(point.mod["main"], resolved) < TOLERANCE[dtype]


def test_strips_waste_little():
    target = resolve_target(AVX2)
    for tiles in range(1, 100):
        filled = -(-tiles // strip_width(tiles, target)) * strip_width(tiles, target)
        assert filled <= max(tiles * 1.2, tiles + 2)


@pytest.mark.parametrize(
    ("layer", "size", "used"),
    [
        (nn.Conv2d(16, 32, 3, padding=1), (16, 17), True),
        (nn.Conv2d(16, 32, 3), (18, 18), True),
        (nn.Conv2d(16, 32, 3, padding=1), (8, 8), False),
        (nn.Conv2d(16, 32, 3, stride=2, padding=1), (32, 32), False),
        (nn.Conv2d(16, 32, 3, dilation=2, padding=2), (32, 32), False),
        (nn.Conv2d(16, 32, 3, groups=2, padding=1), (32, 32), False),
        (nn.Conv2d(3, 32, 3, padding=1), (32, 32), False),
        (nn.Conv2d(16, 32, 5, padding=2), (32, 32), False),
    ],
    ids=["3x3", "no padding", "few tiles", "stride", "dilation", "groups", "few channels", "5x5"],
)
@pytest.mark.parametrize("target", ["llvm", "nvidia/nvidia-h100"])
def test_where_it_is_used(layer, size, used, target):
    mod = import_exported_program(export_module(layer.eval(), [torch.zeros(1, layer.in_channels, *size)]))
    mod = pipeline.run(mod, resolve_target(target), until="lower operators")
    winograd = any("winograd" in name.name_hint for name in mod.get_global_vars())
    assert winograd == (used and target == "llvm")
