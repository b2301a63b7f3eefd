# SPDX-License-Identifier: Apache-2.0
"""Loops of every length in vectors and a rest: no loop over single numbers is left."""

from __future__ import annotations

import re

import numpy as np
import pytest
from programs import run_expression
from reference import relative_norm
from tvm import te, tirx, topi

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed


@pytest.mark.parametrize("length", [1, 3, 16, 31, 65, 200])
def test_lengths(rng, length):
    array = rng.integers(-9, 10, (3, length)).astype(np.float64)
    for dtype in ("float32", "float64", "int32", "int64"):
        actual = run_expression(lambda x: topi.sum(x, 1), [array], dtype, "Rows")
        np.testing.assert_array_equal(actual, array.sum(1))
    for reduce, expected in ((topi.max, array.max(1)), (topi.min, array.min(1)), (topi.prod, np.sign(array).prod(1))):
        given = np.sign(array) if reduce is topi.prod else array
        actual = run_expression(lambda x, reduce=reduce: reduce(x, 1), [given], "float32", "Rows")
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("length", [20, 197])
def test_no_number_is_taken_alone(length):
    """The machine code of a sum adds vectors, halves of them at the end, and one number."""
    x = te.placeholder((61, length), "float32", "x")  # rows that nothing divides are taken one by one
    target = resolve_target('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 1}')
    sch, rule = default_schedule(te.create_prim_func([x, topi.sum(x, 1)]), target)
    assert sch is not None and rule == "Rows"
    library = lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target)
    code = library.mod.inspect_source("asm")
    assert len(re.findall(r"vaddss", code)) < 8
    assert re.findall(r"vaddps\s.*%ymm", code)


def test_what_it_does_not_know_stays(rng):
    """The position of the largest is two stores, which wait for each other."""
    array = rng.standard_normal((3, 40))
    actual = run_expression(lambda x: topi.argmax(x, 1).astype("float32"), [array], "float32", "Rows")
    np.testing.assert_array_equal(actual, array.astype("float32").argmax(1))


@pytest.mark.parametrize("shape", [(3, 7, 9), (2, 100, 7, 13), (70_001,), (1, 40, 6)])
def test_steps_and_selections(rng, shape):
    """Rows of several axes, and one long enough for several cores; both sides of a selection are vectors."""
    array = rng.standard_normal(shape)
    slope = rng.standard_normal(shape[1:2] or (1,))
    along = slope.reshape(-1, *[1] * (len(shape) - 2)) if len(shape) > 1 else slope

    def expression(x: te.Tensor, w: te.Tensor) -> te.Tensor:
        def step(*index):
            factor = w[index[1]] if len(index) > 1 else w[0]
            return tirx.Select(x(*index) > 0, x(*index), x(*index) * factor)

        return te.compute(x.shape, step)

    actual = run_expression(expression, [array, slope], "float32", "Elementwise")
    assert relative_norm(actual, np.where(array > 0, array, array * along)) < 1e-6


@pytest.mark.parametrize("outputs", [36, 55])
@pytest.mark.parametrize("cpu", ["haswell", "znver4"])
def test_a_filled_up_vector_leaves_by_a_mask(outputs, cpu):
    """Of 55 output channels nine lanes of the last vector are not there; none is asked alone."""
    x, residual = te.placeholder((1, 4, 14, 8), "float32", "x"), te.placeholder((1, 4, 14, outputs), "float32", "r")
    weight = te.placeholder((-(-outputs // 16), 1, 1, 8, 16), "float32", "w")
    out = topi.add(topi.erf(conv2d_packed(x, weight, outputs)), residual)
    target = resolve_target(f'{{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "{cpu}", "num-cores": 1}}')
    sch, rule = default_schedule(te.create_prim_func([x, weight, residual, out]), target)
    assert sch is not None and rule == "PackedGemm"
    code = lowering.build(sch.mod["main"].with_attr("global_symbol", "main"), target).mod.inspect_source("asm")
    assert re.search(r"vmaskmovps|vmovups.*\{%k|v\w*ps.*\{%k", code) and not re.search(r"v(add|mul|fmadd213)ss", code)


@pytest.mark.parametrize("outputs", [1, 3, 17])
def test_a_filled_up_vector_holds_what_is_there(outputs, rng):
    """Of one output channel TVM knows the index, and stores no vector."""
    x, weight = rng.standard_normal((1, 4, 14, 8), np.float32), rng.standard_normal((outputs, 8, 1, 1), np.float32)
    packs = np.zeros((-(-outputs // 16) * 16, 8), np.float32)
    packs[:outputs] = weight[..., 0, 0]
    packed = packs.reshape(-1, 16, 1, 1, 8).transpose(0, 2, 3, 4, 1).copy()
    actual = run_expression(
        lambda x, w: topi.nn.relu(conv2d_packed(x, w, outputs)), [x, packed], "float32", "PackedGemm"
    )
    expected = np.maximum(x.astype(np.float64) @ weight[..., 0, 0].T.astype(np.float64), 0)
    assert relative_norm(actual, expected) < 1e-5
