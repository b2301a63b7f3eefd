# SPDX-License-Identifier: Apache-2.0
"""Products of bytes are exact, whatever the sizes, with the CPU's dot product and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from programs import extremes, run_expression, without_tiles
from reference import relative_norm
from tvm import topi

from tvm_involution.cpu_features import cpu_features
from tvm_involution.relax.passes.pack_weights import packed_weight
from tvm_involution.runtime.machine import missing_features
from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.schedules.cpu.dot_int8 import fits_pairs, has_dot_int8, wants_pairs
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, matmul_packed, pack_paired_span, pack_weight, paired_spanned_involution2d

# batch, height, width, inputs, outputs, window, stride, padding, dilation
CASES = [
    (1, 14, 14, 64, 96, 1, 1, 0, 1),
    (2, 7, 9, 13, 35, 1, 1, 0, 1),
    (1, 9, 11, 18, 49, 3, 2, 1, 1),
    (3, 8, 5, 7, 16, 3, 1, 2, 2),
    (1, 13, 28, 32, 64, 3, 1, 1, 1),
]


@pytest.fixture(params=["reference", "bytes", "this CPU", "alderlake", "haswell", "skylake-avx512", "x86-64-v2"])
def how(request):
    """Return the values of a pack, the rule and the target: as written, in fours and one by one, then scheduled."""
    here = without_tiles()
    if request.param in ("reference", "bytes"):
        return (1 if request.param == "reference" else 4), None, None
    if request.param == "this CPU":
        return (4 if has_dot_int8(here) else 1), "PackedGemm", here
    target = resolve_target(f'{{"kind": "llvm", "mcpu": "{request.param}", "mtriple": "x86_64-linux-gnu"}}')
    if missing_features(cpu_features(target)):
        pytest.skip("this CPU lacks instructions of that one")
    return (4 if has_dot_int8(target) else 1), "PackedGemm", target


def packed_for(how, weight: np.ndarray, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight that the CPU's instruction takes, and it packed."""
    values, _, target = how
    if target is not None and wants_pairs(target):
        # neighbours that together are 128 at most, which they often are
        wide = weight.astype(int)
        even, odd = wide[:, : weight.shape[1] // 2 * 2 : 2], wide[:, 1::2]
        odd[...] = np.where(even * odd > 0, np.sign(odd) * np.minimum(abs(odd), 128 - abs(even)), odd)
        weight = wide.astype(weight.dtype)
        assert fits_pairs(weight)
    return weight, pack_weight(weight, lanes, values)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution(rng, case, how):
    n, h, w, i, o, k, stride, padding, dilation = case
    _, rule, target = how
    x = extremes(rng, (n, h, w, i), 0, 255, "uint8")
    weight, packed = packed_for(how, extremes(rng, (o, i, k, k), -127, 127, "int8"), 16)
    exact = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2), torch.from_numpy(weight.astype(np.float64))
    expected = torch.nn.functional.conv2d(*exact, None, stride, padding, dilation).permute(0, 2, 3, 1).numpy()

    def expression(data, packed):
        return conv2d_packed(data, packed, o, (stride,) * 2, (padding,) * 4, (dilation,) * 2, "int32")

    actual = run_expression(expression, [x, packed], None, rule, target)
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 40, 10), (3, 7, 33), (8, 64, 100)])
def test_linear(rng, rows, inputs, outputs, how):
    _, rule, target = how
    x = extremes(rng, (rows, inputs), 0, 255, "uint8")
    weight, packed = packed_for(how, extremes(rng, (outputs, inputs, 1, 1), -127, 127, "int8"), 16)
    weight = weight[:, :, 0, 0]
    actual = run_expression(lambda a, b: matmul_packed(a, b, outputs, "int32"), [x, packed], None, rule, target)
    assert np.array_equal(actual, x.astype(np.float64) @ weight.T.astype(np.float64))


@pytest.mark.parametrize("cpu", ["haswell", "skylake-avx512"])
def test_weights_too_large_for_pairs(rng, cpu):
    """Where neighbours' products can exceed 16 bits, they are packed in 16 bits; all bytes and weights are extreme."""
    target = resolve_target(f'{{"kind": "llvm", "mcpu": "{cpu}", "mtriple": "x86_64-linux-gnu"}}')
    if missing_features(cpu_features(target)):
        pytest.skip("this CPU lacks instructions of that one")
    for inputs, high in ((37, 127), (24, -128)):
        x = np.full((1, 6, 7, inputs), 255, "uint8")
        weight = rng.choice([high, high - 1], (20, inputs, 1, 1)).astype("int8")
        packed = packed_weight(target, weight, "int8")
        assert packed.dtype == "int16" and packed.shape[-1] == 2
        actual = run_expression(
            lambda data, by: conv2d_packed(data, by, 20, out_dtype="int32"), [x, packed], None, "PackedGemm", target
        )
        assert np.array_equal(actual, x.astype(np.float64) @ weight[:, :, 0, 0].T.astype(np.float64))


def test_pairs():
    weight = np.zeros((2, 5, 1, 1), "int8")
    weight[1, :, 0, 0] = 127, 1, -128, 127, 127
    assert fits_pairs(weight)
    for place, value in ((1, 2), (3, -1)):
        other = weight.copy()
        other[1, place] = value
        assert not fits_pairs(other)


def test_bytes_again(rng):
    """Scale, residual and rounding join the products, and the residual's own numbers join them, too."""
    x = extremes(rng, (1, 14, 14, 48), 0, 255, "uint8")
    weight = extremes(rng, (64, 48, 1, 1), -127, 127, "int8")
    residual = extremes(rng, (1, 14, 14, 64), 0, 255, "uint8")
    # powers of two: no rounding but the last
    scale = np.full((1, 1, 1, 64), 2.0**-10, np.float32)

    def expression(data, packed, by, other):
        sums = conv2d_packed(data, packed, 64, out_dtype="int32")
        numbers = topi.multiply(topi.cast(sums, "float32"), by)
        total = topi.nn.relu(topi.add(numbers, topi.multiply(topi.cast(other, "float32"), 0.5)))
        return topi.cast(topi.add(topi.clip(total, 0.0, 255.0), 0.5), "uint8")

    arrays = [x, packed_weight(resolve_target("llvm"), weight, "int8"), scale, residual]
    actual = run_expression(expression, arrays, None, "PackedGemm")
    sums = x.astype(np.float64) @ weight[:, :, 0, 0].T.astype(np.float64)
    assert np.array_equal(actual, np.floor(np.clip(sums * 2.0**-10 + residual * 0.5, 0, 255) + 0.5))


@pytest.mark.parametrize(("size", "stride", "groups"), [((14, 14), 1, 2), ((9, 7), 2, 3)])
@pytest.mark.parametrize("rule", [None, "SpannedInvolution"])
def test_involution_of_bytes(rng, size, stride, groups, rule):
    target = resolve_target("llvm")
    if rule and not (has_dot_bf16(target) and has_dot_int8(target)):
        pytest.skip("this CPU lacks AVX512_BF16 or AVX512_VNNI")
    channels, inner, k = groups * 16, 12, 7
    out = [(d - 1) // stride + 1 for d in size]
    x = extremes(rng, (2, *size, channels), 0, 255, "uint8")
    hidden = extremes(rng, (2, *out, inner), 0, 255, "uint8")
    weight = extremes(rng, (groups * k * k, inner, 1, 1), -127, 127, "int8")
    scale, bias = (rng.uniform(1e-5, 1e-4, groups * k * k).astype(np.float32) for _ in range(2))
    packed, packed_bias = pack_paired_span(weight, bias, k, 32, 4)
    _, packed_scale = pack_paired_span(weight, scale, k, 32, 4)

    def expression(pixels, generated, span, shift, by):
        return paired_spanned_involution2d(pixels, generated, span, shift, k, groups, stride, k // 2, span_scale=by)

    actual = run_expression(expression, [x, hidden, packed, packed_bias, packed_scale], None, rule)
    kernel = (hidden.astype(np.float64) @ weight[:, :, 0, 0].T.astype(np.float64)) * scale + bias
    kernel = kernel.reshape(2, *out, groups, 1, k, k)
    wide = np.pad(x.astype(np.float64), ((0, 0), (3, 3), (3, 3), (0, 0))).reshape(
        2, size[0] + 6, size[1] + 6, groups, 16
    )
    expected = sum(
        wide[:, u : u + size[0] : stride, v : v + size[1] : stride] * kernel[..., u, v]
        for u in range(k)
        for v in range(k)
    )
    assert relative_norm(actual, expected.reshape(actual.shape)) < 1e-2
