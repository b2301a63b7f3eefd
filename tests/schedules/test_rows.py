# SPDX-License-Identifier: Apache-2.0
"""Sums along rows and steps over rows of every length, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from programs import TOLERANCE, run_expression
from reference import relative_norm
from tvm import te, tirx, topi

LENGTHS = [1, 5, 16, 17, 31, 48, 64, 97, 128, 197, 768, 1024]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 3, 160])
def test_sums(rng, rows, length, dtype):
    """Partial sums in vectors where these divide the row, in one and in two axes."""
    array = rng.standard_normal((rows, 3, length)) + 1
    total = run_expression(lambda x: topi.sum(x, (1, 2)), [array], dtype, "Reduction")
    assert relative_norm(total, array.sum((1, 2))) < TOLERANCE[dtype]
    largest = run_expression(lambda x: topi.max(x, 2), [array], dtype, "Reduction")
    np.testing.assert_array_equal(largest, array.astype(dtype).max(2))


def test_nan_in_a_row(rng):
    array = rng.standard_normal((4, 64))
    array[1, 37], array[2, 5], array[3] = np.nan, np.inf, -np.inf
    for reduce, expected in ((topi.max, array.max(1)), (topi.sum, array.sum(1)), (topi.min, array.min(1))):
        actual = run_expression(lambda x, reduce=reduce: reduce(x, 1), [array], "float32", "Reduction")
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_half_types(rng, dtype):
    """Widened before, as `WidenHalfTypes` does."""
    array = rng.standard_normal((5, 64))
    total = run_expression(lambda x: topi.sum(x.astype("float32"), 1).astype(dtype), [array], dtype, "Reduction")
    assert relative_norm(total, array.sum(1)) < TOLERANCE[dtype]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 700])
def test_steps_over_rows(rng, rows, length):
    """Whole vectors and a rest; rows enough for several cores."""
    arrays = [rng.standard_normal((rows, length)), rng.standard_normal((length,))]

    def expression(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        return te.compute(x.shape, lambda i, j: tirx.exp(x[i, j]) * y[j] + x[i, length - 1 - j])

    actual = run_expression(expression, arrays, "float32", "Elementwise")
    assert relative_norm(actual, np.exp(arrays[0]) * arrays[1] + arrays[0][:, ::-1]) < 1e-5


@pytest.mark.parametrize("length", [64, 97])
def test_softmax(rng, length):
    array = rng.standard_normal((7, length)) * 5
    shifted = np.exp(array - array.max(1, keepdims=True))
    actual = run_expression(lambda x: topi.nn.softmax(x, 1), [array], "float32", "Reduction")
    assert relative_norm(actual, shifted / shifted.sum(1, keepdims=True)) < 1e-5


def test_of_scalars(rng):
    """A scalar beside the sum has no axis along which it could lie."""
    arrays = [rng.uniform(1, 2, 64), np.asarray(2.5)]

    def expression(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, 64), "k")
        return te.compute((3,), lambda i: te.sum(x[k] * y(), k))

    actual = run_expression(expression, arrays, "float32", "Reduction")
    assert relative_norm(actual, np.full(3, 2.5 * arrays[0].sum())) < 1e-5
