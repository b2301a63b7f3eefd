# SPDX-License-Identifier: Apache-2.0
"""Sums along rows and steps over rows of every length, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from tvm import te, tirx, topi

from tvm_involution.te.norm import log_softmax_rows, norm_rows

LENGTHS = [1, 5, 16, 17, 31, 48, 64, 97, 128, 197, 768, 1024]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rows", [1, 3, 160])
def test_sums(rng, rows, length, dtype):
    """Partial sums in vectors where these divide the row, in one and in two axes."""
    array = rng.standard_normal((rows, 3, length)) + 1
    total = run_expression(lambda x: topi.sum(x, (1, 2)), [array], dtype, "Rows")
    assert relative_norm(total, array.sum((1, 2))) < TOLERANCE[dtype]
    largest = run_expression(lambda x: topi.max(x, 2), [array], dtype, "Rows")
    np.testing.assert_array_equal(largest, array.astype(dtype).max(2))


def test_nan_in_a_row(rng):
    array = rng.standard_normal((4, 64))
    array[1, 37], array[2, 5], array[3] = np.nan, np.inf, -np.inf
    for reduce, expected in ((topi.max, array.max(1)), (topi.sum, array.sum(1)), (topi.min, array.min(1))):
        actual = run_expression(lambda x, reduce=reduce: reduce(x, 1), [array], "float32", "Rows")
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_half_types(rng, dtype):
    """Widened before, as `WidenHalfTypes` does."""
    array = rng.standard_normal((5, 64))
    total = run_expression(lambda x: topi.sum(x.astype("float32"), 1).astype(dtype), [array], dtype, "Rows")
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


@pytest.mark.parametrize(("rows", "length"), [(7, 64), (7, 97), (48, 21), (39, 3)])
def test_softmax(rng, rows, length):
    array = rng.standard_normal((rows, length)) * 5
    shifted = np.exp(array - array.max(1, keepdims=True))
    actual = run_expression(lambda x: topi.nn.softmax(x, 1), [array], "float32", "Rows")
    assert relative_norm(actual, shifted / shifted.sum(1, keepdims=True)) < 1e-5


@pytest.mark.parametrize("shape", [(7, 64), (4, 12, 19), (1, 31, 5), (2, 16, 97), (34, 1)])
def test_log_softmax(rng, shape):
    """Short rows several at a time, of numbers whose exponentials are not finite."""
    array = rng.standard_normal(shape) * 9 + 300
    shifted = array - array.max(-1, keepdims=True)
    actual = run_expression(log_softmax_rows, [array], "float32", "Rows")
    expected = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_norms(rng, groups, dtype):
    """One program, whose sums along one to three axes run within the loop over rows."""
    array = as_dtype(rng.standard_normal((2, 6, 5, 7)) * 2 + 3, dtype).astype(np.float64)
    weights = [as_dtype(rng.standard_normal((6,) if groups else (6, 5, 7)), dtype).astype(np.float64) for _ in range(2)]
    actual = run_expression(lambda x, g, b: norm_rows(x, g, b, 1, 1e-3, groups), [array, *weights], dtype, "Rows")
    rows = array.reshape(2, groups or 1, -1)
    normed = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-3)
    gamma, beta = (weight[:, None, None] if groups else weight for weight in weights)
    assert relative_norm(actual, normed.reshape(array.shape) * gamma + beta) < TOLERANCE[dtype]


@pytest.mark.parametrize("channels", [1, 19, 64, 257, 1100])
def test_neighbouring_sums(rng, channels, dtype="float32"):
    """Channels last: as many channels at a time as divide them, or all; an epilogue beside the sums."""
    array = rng.standard_normal((2, 5, 4, channels))
    means = run_expression(lambda x: topi.sum(x, (1, 2)) * 0.5, [array], dtype, "Reduction")
    assert relative_norm(means, array.sum((1, 2)) * 0.5) < TOLERANCE[dtype]
    shares = run_expression(lambda x: topi.nn.softmax(x, 1), [array], dtype, "Reduction")
    powers = np.exp(array - array.max(1, keepdims=True))
    assert relative_norm(shares, powers / powers.sum(1, keepdims=True)) < TOLERANCE[dtype]
    places = run_expression(lambda x: topi.argmax(x, 1).astype(dtype), [array], dtype, "Reduction")
    np.testing.assert_array_equal(places, array.astype(dtype).argmax(1))


def test_of_scalars(rng):
    """A scalar beside the sum has no axis along which it could lie."""
    arrays = [rng.uniform(1, 2, 64), np.asarray(2.5)]

    def expression(x: te.Tensor, y: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, 64), "k")
        return te.compute((3,), lambda i: te.sum(x[k] * y(), k))

    actual = run_expression(expression, arrays, "float32", "Rows")
    assert relative_norm(actual, np.full(3, 2.5 * arrays[0].sum())) < 1e-5
