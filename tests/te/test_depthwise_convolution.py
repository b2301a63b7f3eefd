# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolution, as written and as scheduled, against torch in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from tvm import te, topi

from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target
from tvm_involution.te import depthwise_conv2d, pack_depthwise_weight

# N, H, W, C, (KH, KW), strides, (top, left, bottom, right), dilations, strip
CASES = [
    (1, 14, 14, 32, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 14),
    (2, 9, 11, 58, (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 6),
    (1, 13, 7, 21, (5, 5), (1, 2), (2, 2, 2, 2), (1, 1), 4),
    (1, 17, 19, 16, (7, 7), (1, 1), (3, 3, 3, 3), (1, 1), 10),
    (3, 12, 10, 5, (3, 2), (1, 1), (0, 1, 2, 0), (3, 2), 5),
    (1, 1, 30, 24, (1, 9), (1, 1), (0, 4, 0, 4), (1, 1), 10),
    (1, 8, 8, 16, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 6),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rule", [None, "DepthwiseConvolution"])
def test_depthwise_convolution(rng, case, dtype, rule):
    n, h, w, c, kernel, stride, padding, dilation, strip = case
    x = as_dtype(rng.standard_normal((n, h, w, c)), dtype)
    weight = as_dtype(rng.standard_normal((c, 1, *kernel)), dtype)
    exact, window = (torch.from_numpy(a.astype(np.float64)) for a in (x, weight))
    top, left, bottom, right = padding
    padded = torch.nn.functional.pad(exact.permute(0, 3, 1, 2), (left, right, top, bottom))
    expected = torch.nn.functional.conv2d(padded, window, None, stride, 0, dilation, c).permute(0, 2, 3, 1)
    bias = as_dtype(rng.standard_normal((1, 1, 1, c)), dtype)
    expected = torch.nn.functional.silu(expected + torch.from_numpy(bias.astype(np.float64)))

    def expression(data, packed, added):
        sums = topi.add(depthwise_conv2d(data, packed, stride, padding, dilation, strip), added)
        return topi.multiply(sums, topi.sigmoid(sums))

    actual = run_expression(expression, [x, pack_depthwise_weight(weight, 16), bias], dtype, rule)
    assert relative_norm(actual, expected.numpy()) < TOLERANCE[dtype]


def test_the_rule_takes_it():
    x, weight = te.placeholder((1, 9, 9, 32)), te.placeholder((3, 3, 32))
    func = te.create_prim_func([x, weight, depthwise_conv2d(x, weight, padding=(1, 1, 1, 1), strip=9)])
    assert default_schedule(func, resolve_target("llvm"))[1] == "DepthwiseConvolution"
