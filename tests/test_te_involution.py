# SPDX-License-Identifier: Apache-2.0
"""The involution expression, as written and as scheduled, against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from programs import TOLERANCE, as_dtype, run_expression
from reference import involution2d as reference
from reference import relative_norm
from tvm import te

from tvm_involution import UserError
from tvm_involution.te import involution2d, involution2d_output_size

# N, C, G, H, W, kernel, stride, padding, dilation
CASES = [
    (1, 4, 1, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 6, 2, 7, 5, (7, 7), (1, 1), (3, 3), (1, 1)),
    (3, 5, 5, 6, 9, (3, 5), (2, 1), (1, 2), (1, 1)),
    (1, 32, 2, 14, 14, (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 9, 3, 11, 13, (2, 4), (3, 2), (0, 1), (2, 1)),
    (1, 48, 3, 9, 10, (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 20, 1, 8, 15, (5, 3), (1, 2), (0, 0), (1, 3)),
    (1, 64, 4, 8, 28, (7, 7), (1, 1), (3, 3), (1, 1)),
]


def make_inputs(rng, case, dtype):
    n, c, g, h, w, kernel_size, stride, padding, dilation = case
    out = [
        involution2d_output_size(size, *rest)
        for size, *rest in zip((h, w), kernel_size, stride, padding, dilation, strict=True)
    ]
    x = as_dtype(rng.standard_normal((n, c, h, w)), dtype)
    kernel = as_dtype(rng.standard_normal((n, g, *kernel_size, *out)), dtype)
    return x, kernel


def to_layout(x, kernel, layout, packed):
    if layout == "NHWC":
        x, kernel = x.transpose(0, 2, 3, 1), kernel.transpose(0, 4, 5, 1, 2, 3)
    if packed:
        n, g, kh, kw, oh, ow = (
            kernel.shape[i] for i in ((0, 1, 2, 3, 4, 5) if layout == "NCHW" else (0, 3, 4, 5, 1, 2))
        )
        kernel = kernel.reshape((n, g * kh * kw, oh, ow) if layout == "NCHW" else (n, oh, ow, g * kh * kw))
    return np.ascontiguousarray(x), np.ascontiguousarray(kernel)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("packed", [False, True], ids=["rank6", "packed"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_matches_reference(rng, case, layout, packed, scheduled):
    check(rng, case, layout, packed, scheduled, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_dtypes(rng, dtype, layout, scheduled):
    for case in (CASES[1], CASES[3]):
        check(rng, case, layout, False, scheduled, dtype)


def check(rng, case, layout, packed, scheduled, dtype):
    *_, kernel_size, stride, padding, dilation = case
    x, kernel = make_inputs(rng, case, dtype)
    expected = reference(x, kernel, stride, padding, dilation)
    inputs = to_layout(x, kernel, layout, packed)
    actual = run_expression(
        lambda a, b: involution2d(a, b, stride, padding, dilation, layout, kernel_size if packed else None),
        inputs,
        dtype,
        scheduled,
    )
    if layout == "NHWC":
        actual = actual.transpose(0, 3, 1, 2)
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("x", "kernel", "arguments", "words"),
    [
        ((1, 5, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": 1}, "multiple of the kernel's 2 groups"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 5, 4), {"padding": 1}, "must be (1, 4, 4)"),
        ((1, 4, 4), (1, 2, 3, 3, 4, 4), {}, "rank 4"),
        ((1, 4, 4, 4), (1, 18, 4, 4), {"padding": 1}, "needs kernel_size"),
        ((1, 4, 4, 4), (1, 17, 4, 4), {"padding": 1, "kernel_size": 3}, "3x3 taps"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"stride": 0}, "stride"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": (1, 1, 1)}, "padding"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"layout": "CHWN"}, "layout"),
    ],
)
def test_errors_say_what_is_wrong(x, kernel, arguments, words):
    with pytest.raises(UserError) as error:
        involution2d(te.placeholder(x, "float32"), te.placeholder(kernel, "float32"), **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_dtypes_must_agree():
    with pytest.raises(UserError, match="one dtype"):
        involution2d(te.placeholder((1, 4, 4, 4), "float32"), te.placeholder((1, 2, 3, 3, 2, 2), "float16"))
