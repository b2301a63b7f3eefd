# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as an expression that ends in the involution, against plain attentions that know none."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from attentions import BORDERS, full_attention
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from tvm import te as tvm_te

from tvm_involution import UserError, te


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(("kernel_size", "heads", "dilation"), [((3, 3), 2, 1), ((5, 3), 3, 1), ((3, 3), 1, 2)])
def test_matches_attention_pixel_by_pixel(rng, dtype, layout, kernel_size, heads, dilation):
    arrays = [as_dtype(rng.standard_normal((2, 6, 5, 7)), dtype) for _ in range(3)]
    expected = reference.local_attention(*(a.astype(np.float64) for a in arrays), kernel_size, heads, dilation)
    if layout == "NHWC":
        arrays = [np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for a in arrays]
        expected = expected.transpose(0, 2, 3, 1)
    actual = run_expression(
        lambda q, k, v: te.local_attention2d(q, k, v, kernel_size, heads, dilation, layout=layout), arrays, dtype
    )
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(
    ("dtype", "size", "channels", "kernel_size", "dilation", "lanes"),
    [
        ("float64", (7, 9), (6, 8), (3, 5), (1, 1), 4),
        ("float32", (9, 20), (32, 64), (5, 5), (1, 1), 16),
        ("float32", (1, 5), (2, 4), (1, 3), (1, 1), 4),
        ("float16", (9, 11), (4, 2), (3, 3), (2, 3), 8),
        ("bfloat16", (6, 14), (16, 32), (5, 3), (1, 1), 16),
    ],
)
def test_schedules(rng, border, dtype, size, channels, kernel_size, dilation, lanes):
    """Channels last, 2 heads, with a bias, an embedding where there may be one, and a residual behind."""
    query, key, value = (as_dtype(rng.standard_normal((2, c, *size)), dtype) for c in (channels[0], *channels))
    sides = [2 * k - 1 for k in kernel_size] if border == "shifted" else kernel_size
    positions = [as_dtype(rng.standard_normal((2, *sides)), dtype)]
    if border != "shifted":
        positions.append(as_dtype(rng.standard_normal((channels[0], *kernel_size)), dtype))
    expected = full_attention(query, key, value, kernel_size, 2, dilation, 0.6, *positions, border=border) + value

    def attend(query, key, value, *positions):
        added = dict(zip(("bias", "embedding"), positions, strict=False))
        out = te.local_attention2d(
            query, key, value, kernel_size, 2, dilation, 0.6, "NHWC", **added, border=border, lanes=lanes
        )
        return tvm_te.compute(out.shape, lambda *i: out(*i) + value(*i), name="residual")

    pictures = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (query, key, value)]
    actual = run_expression(attend, [*pictures, *positions], dtype, "LocalAttention")
    assert relative_norm(actual, expected.transpose(0, 2, 3, 1)) < TOLERANCE[dtype]


def test_channels_first_in_other_vectors(rng):
    arrays = [rng.standard_normal((2, 6, 7, 9)) for _ in range(3)]
    expected = full_attention(*arrays, (3, 5), 3, (1, 1), border="shifted")

    def attend(query, key, value):
        return te.local_attention2d(query, key, value, (3, 5), 3, border="shifted", lanes=8)

    assert relative_norm(run_expression(attend, arrays, "float64", "Reduction"), expected) < 1e-12


def unfold_attention(query, key, value, kernel_size, heads, dilation, scale):
    """Local attention as PyTorch users write it: unfold keys and values, softmax over the window's positions."""
    n, channels, height, width = query.shape
    padding = [dilation * (k // 2) for k in kernel_size]

    def windows(x):
        columns = torch.nn.functional.unfold(x, kernel_size, dilation, padding)
        return columns.view(n, heads, x.shape[1] // heads, -1, height * width)

    inside = torch.nn.functional.unfold(torch.ones(1, 1, height, width), kernel_size, dilation, padding).bool()
    scores = (query.view(n, heads, channels // heads, 1, -1) * windows(key)).sum(2) * scale
    weights = scores.masked_fill(~inside, float("-inf")).softmax(2)
    return (weights.unsqueeze(2) * windows(value)).sum(3).view(value.shape)


def test_matches_unfold_with_a_scale_and_other_value_channels(rng):
    query, key = (torch.from_numpy(rng.standard_normal((2, 4, 6, 5))) for _ in range(2))
    value = torch.from_numpy(rng.standard_normal((2, 6, 6, 5)))
    arrays = [t.numpy() for t in (query, key, value)]
    actual = run_expression(lambda q, k, v: te.local_attention2d(q, k, v, (3, 5), 2, 1, 0.7), arrays, "float64")
    assert relative_norm(actual, unfold_attention(query, key, value, (3, 5), 2, 1, 0.7).numpy()) < 1e-12


def test_large_scores_do_not_overflow(rng):
    """exp(100 * 100) is infinite in every dtype; the softmax is taken relative to the window's greatest."""
    arrays = [rng.standard_normal((1, 4, 5, 5)) * 100 for _ in range(3)]
    expected = reference.local_attention(*arrays, (3, 3), 2, 1)
    actual = run_expression(lambda q, k, v: te.local_attention2d(q, k, v, 3, 2), arrays, "float64")
    assert relative_norm(actual, expected) < 1e-10


@pytest.mark.parametrize(
    ("shapes", "arguments", "words"),
    [
        ([(1, 4, 5, 5), (1, 4, 5, 6), (1, 4, 5, 5)], (3, 2), r"key must have shape \[1, 4, 5, 5\], got \[1, 4, 5, 6\]"),
        (
            [(1, 4, 5, 5), (1, 4, 5, 5), (2, 4, 5, 5)],
            (3, 2),
            r"value must have shape \[1, 4, 5, 5\], got \[2, 4, 5, 5\]",
        ),
        ([(1, 4, 5, 5), (1, 4, 5, 5), (1, 5, 5, 5)], (3, 2), "channels of value must be a multiple of 2 groups"),
        ([(1, 4, 5)] * 3, (3, 2), "rank 4"),
        ([(1, 4, 5, 5)] * 3, (3, 2, 1, None, "NCHW", None, None, "wrapped"), "border must be one of masked, shifted"),
        ([(1, 4, 5, 5)] * 3, (3, 2, 2, None, "NCHW", None, None, "shifted"), "6x6 pixels .* must fit into the image"),
        (
            [(1, 4, 5, 5)] * 3,
            (3, 2, 1, None, "NCHW", tvm_te.placeholder((3, 3, 3))),
            r"bias must have shape \[2, 3, 3\]",
        ),
        ([(1, 4, 5, 5)] * 3, (3, 3), "channels of query must be a multiple of 3 groups"),
        ([(1, 4, 5, 5)] * 3, (3, 0), "multiple of 0 groups"),
        ([(1, 4, 5, 5)] * 3, ((3, 4), 2), "must be odd to be centred, got 3x4"),
        ([(1, 4, 5, 5)] * 3, (3, 2, 0), "dilation"),
        ([(1, 4, 5, 5)] * 3, (3, 2, 1, None, "CHWN"), "layout"),
    ],
)
def test_errors_say_what_is_wrong(shapes, arguments, words):
    with pytest.raises(UserError, match=words):
        te.local_attention2d(*(tvm_te.placeholder(shape) for shape in shapes), *arguments)
