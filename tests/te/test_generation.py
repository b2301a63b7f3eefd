# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and the whole layer as expressions."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from torch.nn import functional
from tvm import te as tvm_te

from tvm_involution import UserError, te


def generator_arrays(rng, channels, groups, taps, reduced):
    return {
        "reduce": rng.standard_normal((reduced, channels)),
        "scale": rng.uniform(0.5, 1.5, reduced),
        "shift": rng.standard_normal(reduced),
        "mean": rng.standard_normal(reduced),
        "variance": rng.uniform(0.5, 1.5, reduced),
        "span": rng.standard_normal((groups * taps, reduced)),
        "bias": rng.standard_normal(groups * taps),
    }


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("size", "stride"), [((6, 8), (1, 1)), ((6, 8), (2, 2)), ((7, 5), (2, 2)), ((8, 7), (3, 2))])
@pytest.mark.parametrize("whole", [False, True], ids=["kernel", "layer"])
def test_generation(rng, dtype, layout, size, stride, whole):
    n, channels, groups, kernel_size = 2, 12, 3, (3, 5)
    x = as_dtype(rng.standard_normal((n, channels, *size)), dtype)
    arrays = {k: as_dtype(v, dtype) for k, v in generator_arrays(rng, channels, groups, 15, 4).items()}
    exact = {k: v.astype(np.float64) for k, v in arrays.items()}
    factor = exact["scale"] / np.sqrt(exact["variance"] + 1e-5)
    kernel = reference.generate_kernel(
        x.astype(np.float64),
        exact["reduce"],
        factor,
        exact["shift"] - exact["mean"] * factor,
        exact["span"],
        exact["bias"],
        kernel_size,
        stride,
    )
    expected = reference.involution2d(x, kernel, stride, (1, 2)) if whole else kernel

    def expression(data, reduce, scale, shift, mean, variance, span, bias):
        norm = te.BatchNorm(scale, shift, mean, variance)
        generator = te.KernelGenerator(reduce, span, bias, kernel_size, norm)
        if whole:
            return te.generated_involution2d(data, generator, stride, (1, 2), layout=layout)
        return te.generate_kernel(data, generator, stride, layout)

    data = x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    actual = run_expression(expression, [data, *arrays.values()], dtype)
    if layout == "NHWC":
        actual = actual.transpose(0, 3, 1, 2) if whole else actual.transpose(0, 3, 4, 5, 1, 2)
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


def folded_generator(reduce, reduce_bias, span, span_bias, kernel_size):
    return te.KernelGenerator(reduce, span, span_bias, kernel_size, reduce_bias=reduce_bias)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("size", "stride"), [((6, 9), (2, 3)), ((7, 5), (2, 2)), ((2, 7), (3, 1)), ((5, 5), (1, 1))])
def test_folded_batch_norm_against_torch(rng, layout, size, stride):
    x, *weights = (rng.standard_normal(shape) for shape in ((2, 8, *size), (4, 8), (4,), (18, 4), (18,)))
    reduce, reduce_bias, span, span_bias = (torch.from_numpy(a) for a in weights)
    pooled = functional.avg_pool2d(torch.from_numpy(x), stride, ceil_mode=True, count_include_pad=False)
    hidden = functional.conv2d(pooled, reduce[:, :, None, None], reduce_bias).relu()
    expected = functional.conv2d(hidden, span[:, :, None, None], span_bias).unflatten(1, (2, 3, 3)).numpy()
    if layout == "NHWC":
        x, expected = np.ascontiguousarray(x.transpose(0, 2, 3, 1)), expected.transpose(0, 4, 5, 1, 2, 3)
    actual = run_expression(
        lambda data, *w: te.generate_kernel(data, folded_generator(*w, (3, 3)), stride, layout),
        [x, *weights],
        "float64",
    )
    assert relative_norm(actual, expected) < 1e-12


@pytest.mark.parametrize("stride", [1, 2])
def test_nan_stays(rng, stride):
    """A pixel that is NaN has a kernel that is, through pooling and ReLU; the others have not."""
    x, *weights = (rng.standard_normal(shape) for shape in ((1, 4, 4, 6), (2, 4), (2,), (9, 2), (9,)))
    x[0, 1, 2, 3] = np.nan
    actual = run_expression(
        lambda data, *w: te.generate_kernel(data, folded_generator(*w, (3, 3)), stride), [x, *weights], "float64"
    )
    expected = np.zeros(actual.shape, bool)
    expected[..., 2 // stride, 3 // stride] = True
    np.testing.assert_array_equal(np.isnan(actual), expected)


@pytest.mark.parametrize(
    ("shapes", "kernel_size", "words"),
    [
        ({"reduce": (2, 9)}, (3, 3), r"\[2, 9\] and span_weight \[18, 2\] do not fit x \[1, 8, 4, 4\]"),
        ({"span": (18, 3)}, (3, 3), "do not fit"),
        ({"reduce": (2, 8, 1, 1)}, (3, 3), "reduce_weight must have rank 2"),
        ({"span": (18, 2, 1, 1)}, (3, 3), "span_weight must have rank 2"),
        ({}, (5, 5), "18 rows are no multiple of 5x5 taps"),
        ({}, (3, 0), "kernel_size"),
        ({"span_bias": (9,)}, (3, 3), r"span_bias must have shape \[18\], got \[9\]"),
        ({"reduce_bias": (3,)}, (3, 3), r"reduce_bias must have shape \[2\], got \[3\]"),
        ({"variance": (3,)}, (3, 3), r"batch_norm's variance must have shape \[2\]"),
        ({"x": (8, 4, 4)}, (3, 3), "x must have rank 4"),
    ],
)
def test_errors_say_what_is_wrong(shapes, kernel_size, words):
    usual = {"x": (1, 8, 4, 4), "reduce": (2, 8), "reduce_bias": (2,), "span": (18, 2), "span_bias": (18,)}
    usual |= dict.fromkeys(("scale", "shift", "mean", "variance"), (2,))
    p = {name: tvm_te.placeholder(shape, name=name) for name, shape in (usual | shapes).items()}
    norm = te.BatchNorm(p["scale"], p["shift"], p["mean"], p["variance"])
    generator = te.KernelGenerator(p["reduce"], p["span"], p["span_bias"], kernel_size, norm, p["reduce_bias"])
    with pytest.raises(UserError, match=words):
        te.generate_kernel(p["x"], generator)
