# SPDX-License-Identifier: Apache-2.0
"""Convolution and linear layers with packed weights, as written and as scheduled, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import TOLERANCE, as_dtype, run_expression, without_tiles
from reference import relative_norm

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, matmul_packed, pack_grouped_weight, pack_weight

# N, H, W, I, O, kernel, stride, padding, dilation, lanes
CASES = [
    (1, 14, 14, 24, 64, 1, 1, 0, 1, 32),
    (2, 7, 9, 5, 20, 1, 1, 0, 1, 16),
    (1, 13, 11, 3, 32, 3, 2, 1, 1, 32),
    (1, 17, 17, 8, 18, 1, 2, 0, 1, 16),
    (3, 6, 5, 7, 49, 3, 1, 1, 1, 8),
    (1, 9, 10, 4, 16, 3, 1, 2, 2, 16),
    (1, 1, 1, 33, 10, 1, 1, 0, 1, 16),
]


def skip_without_dot_bf16() -> None:
    if not has_dot_bf16(resolve_target("llvm")):
        pytest.skip("this CPU has no AVX512_BF16")


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("epilogue", [False, True], ids=["bare", "epilogue"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "bfloat16 pairs"])
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_convolution(rng, case, epilogue, dtype, rule):
    dtype, _, pairs = dtype.partition(" ")
    if pairs and rule:
        skip_without_dot_bf16()
    n, h, w, i, o, k, stride, padding, dilation, lanes = case
    x = as_dtype(rng.standard_normal((n, h, w, i)), dtype)
    weight = as_dtype(rng.standard_normal((o, i, k, k)), dtype)
    exact = [torch.from_numpy(a.astype(np.float64)) for a in (x, weight)]
    expected = torch.nn.functional.conv2d(
        exact[0].permute(0, 3, 1, 2), exact[1], None, stride, padding, dilation
    ).permute(0, 2, 3, 1)
    bias = as_dtype(rng.standard_normal((1, 1, 1, o)), dtype)
    residual = as_dtype(rng.standard_normal(tuple(expected.shape)), dtype)
    arrays = [x, pack_weight(weight, max(lanes, 16) if pairs else lanes, 2 if pairs else 1)]
    if epilogue:
        expected = (expected + torch.from_numpy(bias.astype(np.float64) + residual.astype(np.float64))).relu()
        arrays += [bias, residual]

    def expression(data, packed, *rest):
        from tvm import topi

        out = conv2d_packed(data, packed, o, (stride,) * 2, (padding,) * 4, (dilation,) * 2)
        return topi.nn.relu(topi.add(topi.add(out, rest[0]), rest[1])) if rest else out

    actual = run_expression(expression, arrays, dtype, rule)
    assert relative_norm(actual, expected.numpy()) < TOLERANCE[dtype]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 40, 10), (3, 7, 33), (8, 64, 100)])
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_linear(rng, rows, inputs, outputs, rule):
    x = rng.standard_normal((rows, inputs)).astype("float32")
    weight = rng.standard_normal((outputs, inputs)).astype("float32")
    packed = pack_weight(weight[:, :, None, None], 16)
    actual = run_expression(lambda a, b: matmul_packed(a, b, outputs), [x, packed], "float32", rule)
    assert relative_norm(actual, x.astype(np.float64) @ weight.T.astype(np.float64)) < 1e-5


@pytest.mark.parametrize("inputs", [40, 7])
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_linear_of_pairs(rng, inputs, rule):
    if rule:
        skip_without_dot_bf16()
    x, weight = (as_dtype(rng.standard_normal(shape), "bfloat16") for shape in ((3, inputs), (33, inputs)))
    packed = pack_weight(weight[:, :, None, None], 16, values=2)
    actual = run_expression(lambda a, b: matmul_packed(a, b, 33), [x, packed], "bfloat16", rule)
    assert relative_norm(actual, x.astype(np.float64) @ weight.astype(np.float64).T) < TOLERANCE["bfloat16"]


def test_pairs_use_the_dot_product(rng):
    """The instruction is there, and nothing falls back to another rule."""
    skip_without_dot_bf16()
    from tvm import te

    target = without_tiles()
    x, weight = te.placeholder((1, 14, 14, 64), "bfloat16"), te.placeholder((2, 1, 1, 32, 32, 2), "bfloat16")
    func = te.create_prim_func([x, weight, conv2d_packed(x, weight, 64)])
    sch, rule = default_schedule(func, target)
    assert rule == "PackedGemm"
    library = lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target)
    assert library.mod.inspect_source("asm").count("vdpbf16ps") >= 14


# groups, inputs and outputs of a group, lanes
@pytest.mark.parametrize(
    "case", [(8, 4, 4, 16), (3, 5, 16, 16), (2, 8, 32, 16), (5, 3, 7, 16), (6, 1, 2, 8), (7, 2, 5, 32)], ids=str
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_groups(rng, case, dtype, rule):
    groups, inputs, outputs, lanes = case
    x = as_dtype(rng.standard_normal((2, 9, 7, groups * inputs)), dtype)
    weight = as_dtype(rng.standard_normal((groups * outputs, inputs, 3, 3)), dtype)
    exact, window = (torch.from_numpy(a.astype(np.float64)) for a in (x, weight))
    expected = torch.nn.functional.conv2d(exact.permute(0, 3, 1, 2), window, None, (2, 1), 1, 1, groups)

    def expression(data, packed):
        return conv2d_packed(data, packed, groups * outputs, (2, 1), (1, 1, 1, 1), groups=groups)

    actual = run_expression(expression, [x, pack_grouped_weight(weight, groups, lanes)], dtype, rule)
    assert relative_norm(actual, expected.permute(0, 2, 3, 1).numpy()) < TOLERANCE[dtype]


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1)])
@pytest.mark.parametrize("rule", [None, "PackedGemm"])
def test_rows_are_filled_up(rng, kernel, padding, rule):
    x = rng.standard_normal((2, 5, 19, 8)).astype("float32")
    weight = rng.standard_normal((20, 8, kernel, kernel)).astype("float32")
    exact, window = (torch.from_numpy(a.astype(np.float64)) for a in (x, weight))
    expected = torch.nn.functional.conv2d(exact.permute(0, 3, 1, 2), window, None, 1, padding).permute(0, 2, 3, 1)

    def expression(data, packed):
        return conv2d_packed(data, packed, 20, padding=(padding,) * 4, strip=10)

    actual = run_expression(expression, [x, pack_weight(weight, 16)], "float32", rule)
    assert relative_norm(actual, expected.numpy()) < 1e-5
