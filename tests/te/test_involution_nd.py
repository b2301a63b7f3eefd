# SPDX-License-Identifier: Apache-2.0
"""The involution expression along one and three axes, as written and as scheduled, against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from programs import TOLERANCE, as_dtype, run_expression
from reference import involution as reference
from reference import relative_norm
from tvm import s_tir, te

from tvm_involution import UserError
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.rule import blocks_of
from tvm_involution.target import resolve_target
from tvm_involution.te import involution, involution2d, involution2d_output_size

# N, groups, channels of a group, size, kernel, stride, padding, dilation
CASES = [
    (2, 3, 5, (9,), (5,), (2,), (3,), (2,)),
    (1, 2, 16, (41,), (7,), (1,), (3,), (1,)),
    (1, 4, 1, (7,), (4,), (3,), (0,), (1,)),
    (2, 2, 16, (5, 6, 7), (3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    (2, 3, 5, (5, 9, 7), (2, 3, 5), (2, 1, 3), (0, 2, 1), (1, 2, 1)),
    (1, 2, 24, (4, 3, 10), (3, 1, 3), (1, 2, 1), (2, 0, 1), (2, 1, 1)),
    (1, 2, 1, (1, 4, 1), (1, 3, 1), (1, 1, 1), (0, 1, 0), (1, 1, 1)),
]


def make_inputs(rng, case, dtype):
    """Return x and the kernel, channels first, and what comes out."""
    n, groups, group_channels, size, kernel_size, *geometry = case
    out = map(involution2d_output_size, size, kernel_size, *geometry)
    x = as_dtype(rng.standard_normal((n, groups * group_channels, *size)), dtype)
    kernel = as_dtype(rng.standard_normal((n, groups, *kernel_size, *out)), dtype)
    return x, kernel, reference(x, kernel, *geometry)


def layout_of(axes, last):
    space = "DHW"[-axes:]
    return f"N{space}C" if last else f"NC{space}"


def to_layout(x, kernel, last, packed):
    axes = x.ndim - 2
    if last:
        x = np.moveaxis(x, 1, -1)
        kernel = kernel.transpose(0, *range(2 + axes, 2 + 2 * axes), *range(1, 2 + axes))
    if packed:
        n, out = kernel.shape[0], kernel.shape[1 : 1 + axes] if last else kernel.shape[-axes:]
        kernel = kernel.reshape((n, *out, -1) if last else (n, -1, *out))
    return np.ascontiguousarray(x), np.ascontiguousarray(kernel)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("rule", [None, "Involution"])
def test_matches_reference(rng, case, last, rule):
    kernel_size, *geometry = case[4:]
    for dtype in ("float32", str(rng.choice(["float16", "bfloat16", "float64"]))):
        packed = bool(rng.integers(2))
        print(dtype, "packed" if packed else "full")
        x, kernel, expected = make_inputs(rng, case, dtype)
        layout = layout_of(len(kernel_size), last)
        actual = run_expression(
            lambda x, kernel, layout=layout, packed=packed: involution(
                x, kernel, *geometry, layout, kernel_size if packed else None
            ),
            to_layout(x, kernel, last, packed),
            dtype,
            rule if last else rule and "Reduction",
        )
        if last:
            actual = np.moveaxis(actual, -1, 1)
        assert relative_norm(actual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("layout", ["NWC", "NDHWC"])
def test_the_rule_of_two_axes_takes_the_others(layout):
    axes = len(layout) - 2
    x, kernel = te.placeholder((1, *(9,) * axes, 32)), te.placeholder((1, *(9,) * axes, 2 * 3**axes))
    func = te.create_prim_func([x, kernel, involution(x, kernel, 1, 1, 1, layout, 3)])
    assert default_schedule(func, resolve_target("llvm"))[1] == "Involution"
    schedule = s_tir.Schedule(func)
    assert [schedule.get(block).name_hint for block in blocks_of(schedule)] == ["pad_temp", "involution2d"]


@pytest.mark.parametrize("rule", [None, "Involution"])
@pytest.mark.parametrize("axes", [1, 3])
def test_half_types_are_rounded_once(rng, axes, rule):
    x, kernel, expected = make_inputs(
        rng, (1, 1, 16, (9,) * axes, (5,) * axes, *((n,) * axes for n in (1, 2, 1))), "bfloat16"
    )
    inputs = to_layout(x, kernel, True, True)
    layout = layout_of(axes, True)
    actual = run_expression(lambda x, k: involution(x, k, 1, 2, 1, layout, 5), inputs, "bfloat16", rule)
    expected = np.moveaxis(expected, 1, -1)
    assert (abs(actual - expected) <= 2**-8 * abs(expected) + 1e-4).all()


@pytest.mark.parametrize("rule", [None, "Involution"])
@pytest.mark.parametrize("axes", [1, 3])
def test_nan_spreads_over_its_windows_and_infinity_times_zero_is_nan(rng, axes, rule):
    ones = (1,) * axes
    x, kernel, _ = make_inputs(rng, (1, 1, 2, (5,) * axes, (3,) * axes, ones, ones, ones), "float32")
    middle, corner = (2,) * axes, (0,) * axes
    x[(0, 0, *middle)], x[(0, 1, *corner)], kernel[(0, 0, *ones, *corner)] = np.nan, np.inf, 0
    inputs, layout = to_layout(x, kernel, True, True), layout_of(axes, True)
    actual = run_expression(lambda x, k: involution(x, k, 1, 1, 1, layout, 3), inputs, "float32", rule)
    with np.errstate(invalid="ignore"):
        expected = reference(x, kernel, ones, ones, ones)
    np.testing.assert_array_equal(np.isnan(np.moveaxis(actual, -1, 1)), np.isnan(expected))


@pytest.mark.parametrize(
    ("x", "kernel", "arguments", "words"),
    [
        ((1, 5, 4), (1, 2, 3, 4), {"padding": 1, "layout": "NCW"}, "multiple of the kernel's 2 groups"),
        ((1, 4, 4), (1, 2, 3, 5), {"padding": 1, "layout": "NCW"}, "(N, OW) must be (1, 4)"),
        ((1, 4, 4), (1, 6, 4), {"layout": "NCW"}, "needs kernel_size=(KW)"),
        ((1, 4, 4), (1, 2, 3, 4), {"padding": (1, 1), "layout": "NCW"}, "one for the only axis of at least 0"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"layout": "NCDHW"}, "rank 5"),
        ((1, 4, 4, 4, 4), (1, 54, 4, 4, 4), {"stride": (1, 2), "layout": "NCDHW"}, "an int or 3 of them"),
        ((1, 4, 4, 4, 4), (1, 53, 4, 4, 4), {"layout": "NCDHW", "kernel_size": 3}, "3x3x3 taps"),
        ((1, 4, 4, 4, 4), (1, 2, 3, 3, 5, 4, 4, 0), {"padding": (1, 1, 0), "layout": "NCDHW"}, "window of 3x3x5"),
        ((1, 4, 4, 4, 4), (1, 4, 4, 4, 54), {"layout": "DNHWC"}, "NWC, NCHW, NHWC, NCDHW, NDHWC"),
    ],
)
def test_errors_say_what_is_wrong(x, kernel, arguments, words):
    with pytest.raises(UserError) as error:
        involution(te.placeholder(x, "float32"), te.placeholder(kernel, "float32"), **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_two_axes_take_layouts_of_two_axes():
    with pytest.raises(UserError, match="one of NCHW, NHWC, got 'NCDHW'"):
        involution2d(te.placeholder((1, 4, 4, 4, 4)), te.placeholder((1, 54, 4, 4, 4)), layout="NCDHW", kernel_size=3)
