# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as an involution, against attention written down pixel by pixel and against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import local_attention as reference
from reference import relative_norm

from tvm_involution import UserError
from tvm_involution.nn import local_attention2d


def make_inputs(rng, shape):
    return tuple(torch.from_numpy(rng.standard_normal(shape)) for _ in range(3))


@pytest.mark.parametrize(
    ("shape", "kernel_size", "num_heads", "dilation"),
    [((2, 6, 5, 7), 3, 2, 1), ((1, 8, 6, 6), 5, 8, 1), ((1, 4, 7, 9), 3, 1, 2), ((1, 4, 3, 2), 7, 2, 1)],
)
def test_matches_reference(rng, shape, kernel_size, num_heads, dilation):
    query, key, value = make_inputs(rng, shape)
    expected = reference(query.numpy(), key.numpy(), value.numpy(), (kernel_size,) * 2, num_heads, dilation)
    assert relative_norm(local_attention2d(query, key, value, kernel_size, num_heads, dilation), expected) < 1e-13


def test_equals_torch_attention_under_a_window_mask(rng):
    """Full attention of all pixels, the pixels outside each window masked out."""
    query, key, value = make_inputs(rng, (2, 8, 6, 5))
    rows, columns = np.divmod(np.arange(30), 5)
    near = (abs(rows[:, None] - rows) <= 1) & (abs(columns[:, None] - columns) <= 1)
    tokens = (t.unflatten(1, (2, 4)).flatten(3).transpose(2, 3) for t in (query, key, value))
    full = torch.nn.functional.scaled_dot_product_attention(*tokens, attn_mask=torch.from_numpy(near), scale=0.3)
    expected = full.transpose(2, 3).reshape(2, 8, 6, 5)
    torch.testing.assert_close(local_attention2d(query, key, value, 3, 2, scale=0.3), expected)


def test_window_over_all_of_the_image_is_global_attention(rng):
    query, key, value = make_inputs(rng, (1, 4, 4, 4))
    tokens = (t.flatten(2).transpose(1, 2) for t in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*tokens).transpose(1, 2).reshape(1, 4, 4, 4)
    torch.testing.assert_close(local_attention2d(query, key, value, 7, 1), expected)


def test_values_may_have_other_channels(rng):
    query, key, _ = make_inputs(rng, (1, 4, 5, 5))
    out = local_attention2d(query, key, torch.ones(1, 6, 5, 5, dtype=torch.float64), 3, 2)
    torch.testing.assert_close(out, torch.ones_like(out))
    assert out.shape == (1, 6, 5, 5)


def test_gradients(rng):
    inputs = [t.requires_grad_() for t in make_inputs(rng, (1, 4, 3, 4))]
    assert torch.autograd.gradcheck(lambda *qkv: local_attention2d(*qkv, 3, 2), inputs)


@pytest.mark.parametrize(
    ("shapes", "kernel_size", "num_heads", "words"),
    [
        (((1, 4, 5, 5), (1, 4, 5, 6), (1, 4, 5, 5)), 3, 2, r"\[1, 4, 5, 6\]"),
        (((1, 4, 5, 5), (1, 4, 5, 5), (2, 4, 5, 5)), 3, 2, r"\[2, 4, 5, 5\]"),
        (((1, 4, 5, 5),) * 3, 3, 3, "num_heads 3"),
        (((1, 4, 5, 5),) * 3, 4, 2, "kernel_size 4"),
    ],
)
def test_arguments_that_do_not_fit(shapes, kernel_size, num_heads, words):
    with pytest.raises(UserError, match=words):
        local_attention2d(*(torch.zeros(shape) for shape in shapes), kernel_size, num_heads)
