# SPDX-License-Identifier: Apache-2.0
"""Copies to another order of axes, what is interpolated between such, parts of maps, and channels shuffled."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import tvm
from programs import TOLERANCE, as_dtype, run_expression
from reference import relative_norm
from torch.nn import functional
from tvm import te, topi

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.rule import blocks_of
from tvm_involution.target import resolve_target


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [((2, 37, 29, 48), (0, 3, 1, 2)), ((2, 34, 19, 67), (0, 2, 3, 1)), ((300, 211), (1, 0)), ((5, 6, 7), (2, 0, 1))],
)
def test_transposed_copies(rng, shape, axes, dtype):
    """Large ones in tiles, small ones as they are."""
    array = rng.integers(-9, 10, shape).astype(np.float64)
    actual = run_expression(lambda x: topi.transpose(x, axes), [array], dtype, "Elementwise")
    np.testing.assert_array_equal(actual, array.transpose(axes))


@pytest.mark.parametrize("shape", [(2, 24, 7, 9), (1, 65, 12, 5), (1, 3, 20, 20)])
@pytest.mark.parametrize("method", ["linear", "cubic"])
def test_interpolation_between_transposed_copies(rng, shape, method):
    """Channels first: what lies around an interpolation is copied to the order in which it takes vectors."""
    array = rng.standard_normal(shape)
    size = (31, 33)

    def expression(x: te.Tensor) -> te.Tensor:
        last = topi.transpose(x, (0, 2, 3, 1))
        wide = topi.image.resize2d(
            last, (0.0,) * 4, size, "NHWC", method, "half_pixel", rounding_method="", bicubic_alpha=-0.75
        )
        return topi.transpose(wide, (0, 3, 1, 2))

    actual = run_expression(expression, [array], "float32", "Elementwise")
    mode = {"linear": "bilinear", "cubic": "bicubic"}[method]
    expected = functional.interpolate(torch.from_numpy(array), size, mode=mode)
    assert relative_norm(actual, expected.numpy()) < TOLERANCE["float32"]


@pytest.mark.parametrize("channels", [16, 30, 512])
def test_means_of_uneven_parts(rng, channels):
    array = rng.standard_normal((2, 11, 13, channels))
    actual = run_expression(
        lambda x: topi.nn.adaptive_pool(x, (3, 5), "avg", "NHWC"), [array], "float32", "Elementwise"
    )
    expected = functional.adaptive_avg_pool2d(torch.from_numpy(array).permute(0, 3, 1, 2), (3, 5)).permute(0, 2, 3, 1)
    assert relative_norm(actual, expected.numpy()) < TOLERANCE["float32"]


def shuffled(groups: int, x: te.Tensor) -> te.Tensor:
    *pixels, channels = (int(d) for d in x.shape)
    apart = topi.reshape(x, (*pixels, groups, channels // groups))
    return topi.reshape(topi.transpose(apart, (0, 1, 3, 2)), x.shape)


def build_shuffle(groups: int, shape: tuple[int, ...], dtype: str, target: tvm.target.Target) -> tvm.runtime.Module:
    x = te.placeholder(shape, dtype, "x")
    # as Relax makes programs
    func = te.create_prim_func([x, shuffled(groups, x)], index_dtype_override="int64")
    sch, rule = default_schedule(func, target)
    assert sch is not None and rule == "Elementwise"
    return lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64"])
@pytest.mark.parametrize(("groups", "channels"), [(2, 58), (2, 32), (4, 60), (8, 72), (3, 48), (29, 58), (2, 4)])
def test_shuffled_channels(rng, groups, channels, dtype):
    array = as_dtype(rng.integers(-99, 100, (5, 7, channels)), dtype)
    result = tvm.runtime.empty(array.shape, dtype)
    build_shuffle(groups, array.shape, dtype, resolve_target("llvm"))["main"](tvm.runtime.tensor(array), result)
    expected = array.reshape(5, 7, groups, -1).swapaxes(2, 3).reshape(array.shape)
    np.testing.assert_array_equal(result.numpy(), expected)


def test_shuffled_channels_are_vectors():
    """Two vectors that lie in memory, and no number gathered by its address."""
    target = resolve_target('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "znver4", "num-cores": 1}')
    code = build_shuffle(2, (28, 28, 116), "float32", target).mod.inspect_source("asm")
    assert re.search(r"vpermt2ps|vpermi2ps|vunpck[lh]ps", code) and not re.search(r"gather|vinsertps|vmovss", code)


def test_steps_are_not_kept_apart():
    """What reads a number four times is no interpolation: the copy to another order is made with it."""
    x = te.placeholder((2, 40, 40, 32), "float32", "x")
    steps = te.compute(x.shape, lambda *i: x(*i) * x(*i) * x(*i) + x(*i) * x(*i), "steps")
    func = te.create_prim_func([x, topi.transpose(steps, (0, 3, 1, 2))])
    sch, rule = default_schedule(func, resolve_target("llvm"))
    assert sch is not None and rule == "Elementwise" and len(blocks_of(sch)) == 1
