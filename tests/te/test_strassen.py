# SPDX-License-Identifier: Apache-2.0
"""Convolution by Strassen's algorithm, as written, as scheduled and at random points of its space, against float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from programs import random_point, run_expression
from reference import relative_norm
from torch import nn
from tvm import s_tir, te, topi

from tvm_involution import lowering
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.schedules.cpu import Strassen
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_strassen, pack_strassen_weight

AVX2 = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 2}'
AVX512 = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4", "num-cores": 2}'
# N, H, W, I, O, stride, lanes
CASES = [
    (1, 14, 14, 64, 128, (1, 1), 32),
    (2, 6, 9, 10, 32, (1, 1), 16),
    (1, 15, 11, 6, 96, (2, 2), 16),
    (4, 5, 7, 34, 64, (1, 1), 16),
    (2, 13, 8, 50, 64, (2, 1), 32),
]


class Program:
    """A case with its numbers: convolution, bias, residual and ReLU."""

    def __init__(self, rng, case) -> None:
        n, h, w, i, o, self.stride, lanes = case
        x, weight = rng.standard_normal((n, h, w, i)), rng.standard_normal((o, i, 1, 1))
        sums = x[:, :: self.stride[0], :: self.stride[1]] @ weight[:, :, 0, 0].T
        bias, residual = rng.standard_normal((1, 1, 1, o)), rng.standard_normal(sums.shape)
        self.arrays = [x, pack_strassen_weight(weight, lanes), bias, residual]
        self.expected = np.maximum(sums + bias + residual, 0)

    def expression(self, x, weight, bias, residual):
        sums = conv2d_strassen(x, weight, self.stride)
        return topi.nn.relu(topi.add(topi.add(sums, bias), residual))

    def primfunc(self) -> tvm.tirx.PrimFunc:
        inputs = [te.placeholder(array.shape, "float32", f"in{k}") for k, array in enumerate(self.arrays)]
        return te.create_prim_func([*inputs, self.expression(*inputs)])

    def error(self, schedule: s_tir.Schedule, target: tvm.target.Target) -> float:
        library = lowering.build(schedule.mod["main"].with_attr("global_symbol", "main"), target)
        result = tvm.runtime.empty(self.expected.shape, "float32")
        library["main"](*(tvm.runtime.tensor(array.astype("float32")) for array in self.arrays), result)
        return relative_norm(result.numpy(), self.expected)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-7)])
def test_as_written(rng, case, dtype, tolerance):
    program = Program(rng, case)
    assert relative_norm(run_expression(program.expression, program.arrays, dtype), program.expected) < tolerance


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
def test_schedules(rng, case, target):
    resolved, program = resolve_target(target), Program(rng, case)
    func = program.primfunc()
    default, spaces = (Strassen().apply(func, resolved, tunable) for tunable in (False, True))
    assert program.error(default, resolved) < 1e-5
    point = random_point(rng, func, spaces)
    assert program.error(point, resolved) < 1e-5


def test_without_an_epilogue(rng):
    x, weight = rng.standard_normal((1, 4, 6, 32)), rng.standard_normal((64, 32, 1, 1))
    arrays = [x, pack_strassen_weight(weight, 32)]
    out = run_expression(conv2d_strassen, arrays, "float32", rule="Strassen")
    assert relative_norm(out, x @ weight[:, :, 0, 0].T) < 1e-5


@pytest.mark.parametrize(
    ("layer", "batch", "size", "used"),
    [
        (nn.Conv2d(64, 128, 1), 1, (14, 13), True),
        (nn.Conv2d(64, 128, 1, stride=2), 1, (27, 28), True),
        (nn.Conv2d(64, 128, 1), 2, (13, 13), True),
        (nn.Conv2d(64, 128, 1), 1, (13, 14), False),
        (nn.Conv2d(512, 512, 1), 1, (6, 7), False),
        (nn.Conv2d(32, 128, 1), 1, (14, 14), False),
        (nn.Conv2d(256, 64, 1), 1, (14, 14), False),
        (nn.Conv2d(64, 192, 1), 1, (14, 14), True),
        (nn.Conv2d(64, 160, 1), 1, (14, 14), False),
        (nn.Conv2d(128, 256, 1, groups=2), 1, (14, 14), False),
        (nn.Conv2d(64, 128, 1, padding=1), 1, (14, 14), False),
        (nn.Conv2d(64, 128, 3, stride=2), 1, (15, 15), False),
    ],
    ids=str,
)
def test_where_it_is_used(rng, layer, batch, size, used):
    example = torch.zeros(batch, layer.in_channels, *size)
    mod = import_exported_program(export_module(layer.eval(), [example]))
    for target, wanted in ((AVX512, used), ("nvidia/nvidia-h100", False)):
        lowered = pipeline.run(mod, resolve_target(target), until="lower operators")
        assert any("strassen" in name.name_hint for name in lowered.get_global_vars()) == wanted


def test_half_types_go_without(rng):
    mod = import_exported_program(export_module(nn.Conv2d(64, 128, 1).eval(), [torch.zeros(1, 64, 14, 14)]))
    lowered = pipeline.run(mod, resolve_target(AVX512), dtype="bfloat16", until="lower operators")
    assert not any("strassen" in name.name_hint for name in lowered.get_global_vars())
