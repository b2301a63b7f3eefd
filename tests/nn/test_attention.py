# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as an involution, against attention written down pixel by pixel and against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attentions import BORDERS, full_attention
from reference import local_attention as reference
from reference import relative_norm

from tvm_involution import UserError
from tvm_involution.nn import LocalAttention2d, local_attention2d


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


def terms(rng, border, heads, channels, kernel_size):
    """A bias and, where there may be one, an embedding."""
    sides = [2 * k - 1 for k in kernel_size] if border == "shifted" else kernel_size
    embedding = None if border == "shifted" else torch.from_numpy(rng.standard_normal((channels, *kernel_size)))
    return {"bias": torch.from_numpy(rng.standard_normal((heads, *sides))), "embedding": embedding}


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel_size", "dilation"), [((7, 9), (3, 5), (1, 1)), ((9, 11), (3, 3), (2, 3)), ((5, 5), (5, 1), (1, 2))]
)
def test_equals_full_attention(rng, border, positions, size, kernel_size, dilation):
    query, key = make_inputs(rng, (2, 6, *size))[:2]
    value = torch.from_numpy(rng.standard_normal((2, 4, *size)))
    added = terms(rng, border, 2, 6, kernel_size) if positions else {}
    actual = local_attention2d(query, key, value, kernel_size, 2, dilation, 0.6, **added, border=border)
    arrays = {name: None if x is None else x.numpy() for name, x in added.items()}
    expected = full_attention(query, key, value, kernel_size, 2, dilation, 0.6, **arrays, border=border)
    assert relative_norm(actual, expected) < 1e-13
    half = [x.bfloat16() for x in (query, key, value)]
    rounded = {name: None if x is None else x.bfloat16() for name, x in added.items()}
    actual = local_attention2d(*half, kernel_size, 2, dilation, 0.6, **rounded, border=border)
    assert actual.dtype == torch.bfloat16 and relative_norm(actual.double(), expected) < 2e-2


def test_values_may_have_other_channels(rng):
    query, key, _ = make_inputs(rng, (1, 4, 5, 5))
    out = local_attention2d(query, key, torch.ones(1, 6, 5, 5, dtype=torch.float64), 3, 2)
    torch.testing.assert_close(out, torch.ones_like(out))
    assert out.shape == (1, 6, 5, 5)


def test_gradients(rng):
    inputs = [t.requires_grad_() for t in make_inputs(rng, (1, 4, 3, 4))]
    assert torch.autograd.gradcheck(lambda *qkv: local_attention2d(*qkv, 3, 2), inputs, fast_mode=True)


@pytest.mark.parametrize("border", BORDERS)
def test_gradients_with_positions(rng, border):
    query, key = make_inputs(rng, (2, 4, 3, 4))[:2]
    value = torch.from_numpy(rng.standard_normal((2, 2, 3, 4)))
    added = terms(rng, border, 2, 4, (3, 3))
    inputs = [x.requires_grad_() for x in (query, key, value, *added.values()) if x is not None]

    def attend(query, key, value, bias, embedding=None):
        return local_attention2d(query, key, value, 3, 2, 1, None, bias, embedding, border)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


def test_operator_keeps_the_rules_of_operators(rng):
    """Its schema, its gradient and its fake kernel, by torch's own checks."""
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    query, key, value = (x.requires_grad_() for x in make_inputs(rng, (1, 4, 3, 4)))
    added = terms(rng, "masked", 2, 4, (3, 3))
    arguments = (query, key, value, *added.values(), 2, [3, 3], [1, 1], 0.5, "masked")
    torch.library.opcheck(torch.ops.tvm_involution.local_attention2d.default, arguments, test_utils=checks)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("relative_position", ["embedding", "bias", "none"])
def test_layer(rng, border, relative_position):
    arguments = {"border": border, "relative_position": relative_position}
    if (border, relative_position) == ("shifted", "embedding"):
        with pytest.raises(UserError, match="no embedding"):
            LocalAttention2d(6, 3, 2, 8, **arguments)
        return
    layer = LocalAttention2d(6, 3, 2, 8, **arguments).double()
    x = torch.from_numpy(rng.standard_normal((2, 6, 5, 7)))
    out = layer(x)
    assert out.shape == (2, 8, 5, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = layer.float()(x.float())
    assert half.dtype == torch.bfloat16
    assert relative_norm(half.detach().double(), out.detach()) < 0.05


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"border": "padded"}, "border must be one of masked, shifted, zeros, got 'padded'"),
        ({"kernel_size": 7, "border": "shifted"}, r"7x7 pixels .* must fit into the image, got 5x5"),
        ({"bias": torch.zeros(2, 3, 5)}, r"bias must have shape \[2, 3, 3\]"),
        ({"bias": torch.zeros(2, 3, 3), "border": "shifted"}, r"bias must have shape \[2, 5, 5\]"),
        ({"embedding": torch.zeros(2, 3, 3)}, r"embedding must have shape \[4, 3, 3\]"),
        ({"embedding": torch.zeros(4, 3, 3), "border": "shifted"}, "no embedding where windows are shifted"),
        ({"bias": torch.zeros(2, 3, 3).double()}, "one floating dtype"),
        ({"dilation": (1, 1, 1)}, "dilation must be an int or a pair"),
    ],
)
def test_positions_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        local_attention2d(
            *(torch.zeros(1, 4, 5, 5) for _ in range(3)), **{"kernel_size": 3, "num_heads": 2, **arguments}
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 12, "num_heads": 4}, "out_channels=12 must be a multiple of 8 for num_heads=4"),
        ({"channels": 8, "kernel_size": 4}, "kernel_size must be an odd int"),
        ({"channels": 8, "relative_position": "rotary"}, "relative_position embedding, bias or none"),
    ],
)
def test_layers_that_do_not_fit(arguments, words):
    with pytest.raises(UserError, match=words):
        LocalAttention2d(**arguments)


@pytest.mark.parametrize(
    ("shapes", "kernel_size", "num_heads", "words"),
    [
        (((1, 4, 5, 5), (1, 4, 5, 6), (1, 4, 5, 5)), 3, 2, r"\[1, 4, 5, 6\]"),
        (((1, 4, 5, 5), (1, 4, 5, 5), (2, 4, 5, 5)), 3, 2, r"\[2, 4, 5, 5\]"),
        (((1, 4, 5, 5),) * 3, 3, 3, "num_heads 3"),
        (((1, 4, 5, 5),) * 3, 4, 2, r"kernel_size \[4, 4\]"),
    ],
)
def test_arguments_that_do_not_fit(shapes, kernel_size, num_heads, words):
    with pytest.raises(UserError, match=words):
        local_attention2d(*(torch.zeros(shape) for shape in shapes), kernel_size, num_heads)
