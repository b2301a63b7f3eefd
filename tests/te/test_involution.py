# SPDX-License-Identifier: Apache-2.0
"""The involution expression, as written and as scheduled, against the plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from programs import TOLERANCE, as_dtype, run_expression
from reference import involution2d as reference
from reference import relative_norm
from tvm import s_tir, te, tirx

from tvm_involution import UserError
from tvm_involution.te import involution2d, involution2d_output_size

# N, C, G, H, W, kernel, stride, padding, dilation
CASES = [
    (1, 4, 1, 5, 6, (3, 3), (1, 1), (1, 1), (1, 1)),
    (2, 6, 2, 7, 5, (7, 7), (1, 1), (3, 3), (1, 1)),
    (3, 5, 5, 6, 9, (3, 5), (2, 1), (1, 2), (1, 1)),
    (1, 32, 2, 14, 14, (7, 7), (2, 2), (3, 3), (1, 1)),
    (2, 9, 3, 11, 13, (2, 4), (3, 2), (0, 1), (2, 1)),
    (1, 48, 3, 9, 10, (3, 3), (1, 1), (2, 2), (2, 2)),
    (1, 20, 1, 8, 15, (5, 3), (1, 2), (0, 0), (1, 3)),
    (1, 64, 4, 8, 28, (7, 7), (1, 1), (3, 3), (1, 1)),
]


def make_inputs(rng, case, dtype):
    n, c, g, h, w, kernel_size, stride, padding, dilation = case
    out = [
        involution2d_output_size(size, *rest)
        for size, *rest in zip((h, w), kernel_size, stride, padding, dilation, strict=True)
    ]
    x = as_dtype(rng.standard_normal((n, c, h, w)), dtype)
    kernel = as_dtype(rng.standard_normal((n, g, *kernel_size, *out)), dtype)
    return x, kernel


def to_layout(x, kernel, layout, packed):
    if layout == "NHWC":
        x, kernel = x.transpose(0, 2, 3, 1), kernel.transpose(0, 4, 5, 1, 2, 3)
    if packed:
        n, g, kh, kw, oh, ow = (
            kernel.shape[i] for i in ((0, 1, 2, 3, 4, 5) if layout == "NCHW" else (0, 3, 4, 5, 1, 2))
        )
        kernel = kernel.reshape((n, g * kh * kw, oh, ow) if layout == "NCHW" else (n, oh, ow, g * kh * kw))
    return np.ascontiguousarray(x), np.ascontiguousarray(kernel)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("packed", [False, True], ids=["rank6", "packed"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_matches_reference(rng, case, layout, packed, scheduled):
    check(rng, case, layout, packed, scheduled, "float32")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_dtypes(rng, dtype, layout, scheduled):
    for case in (CASES[1], CASES[3]):
        check(rng, case, layout, False, scheduled, dtype)


# whose rule for CPUs is for channels last, in which networks are laid out
RULE = {"NHWC": "Involution", "NCHW": "Reduction"}


def check(rng, case, layout, packed, scheduled, dtype):
    *_, kernel_size, stride, padding, dilation = case
    x, kernel = make_inputs(rng, case, dtype)
    expected = reference(x, kernel, stride, padding, dilation)
    inputs = to_layout(x, kernel, layout, packed)
    actual = run_expression(
        lambda a, b: involution2d(a, b, stride, padding, dilation, layout, kernel_size if packed else None),
        inputs,
        dtype,
        RULE[layout] if scheduled else None,
    )
    if layout == "NHWC":
        actual = actual.transpose(0, 3, 1, 2)
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_one_channel_a_group(rng, dtype):
    """Nothing to vectorize: the schedule's innermost loops have one step."""
    check(rng, (2, 3, 3, 7, 2, (4, 4), (2, 3), (2, 4), (2, 3)), "NHWC", False, True, dtype)


def random_case(rng):
    """A geometry whose window fits at least once."""
    kernel_size, stride, padding, dilation = (
        tuple(int(v) for v in rng.integers(low, high, 2, endpoint=True))
        for low, high in ((1, 5), (1, 3), (0, 4), (1, 3))
    )
    size = [
        max(1, d * (k - 1) + 1 - 2 * p) + int(rng.integers(0, 8))
        for k, p, d in zip(kernel_size, padding, dilation, strict=True)
    ]
    batch, groups, group_channels = (int(v) for v in rng.integers(1, (3, 4, 18), endpoint=True))
    return batch, groups * group_channels, groups, *size, kernel_size, stride, padding, dilation


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_random_geometries(rng, dtype, scheduled):
    for _ in range(8):
        case, layout, packed = random_case(rng), str(rng.choice(["NCHW", "NHWC"])), bool(rng.integers(2))
        print(case, layout, packed)
        check(rng, case, layout, packed, scheduled, dtype)


@pytest.mark.parametrize(("dtype", "unit_roundoff"), [("float16", 2**-11), ("bfloat16", 2**-8)])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_half_types_are_rounded_once(rng, dtype, unit_roundoff, scheduled):
    """Sums are in float32, so only the cast at the end loses digits; a half type would lose some at each tap."""
    x, kernel = make_inputs(rng, (2, 16, 1, 9, 9, (7, 7), (1, 1), (3, 3), (1, 1)), dtype)
    expected = reference(x, kernel, padding=(3, 3))
    actual = run_expression(
        lambda a, b: involution2d(a, b, padding=3), [x, kernel], dtype, "Reduction" if scheduled else None
    )
    assert (abs(actual - expected) <= unit_roundoff * abs(expected) + 1e-5).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("packed", [False, True], ids=["rank6", "packed"])
def test_symbolic_batch(rng, layout, packed):
    n = tirx.Var("n", "int64")
    case = (2, 6, 3, 5, 7, (3, 3), (1, 1), (1, 1), (1, 1))
    x, kernel = to_layout(*make_inputs(rng, case, "float32"), layout, packed)
    inputs = [te.placeholder((n, *array.shape[1:]), "float32") for array in (x, kernel)]
    output = involution2d(*inputs, padding=1, layout=layout, kernel_size=3)
    func = te.create_prim_func([*inputs, output]).with_attr("global_symbol", "main")
    library = tvm.compile(func, target="llvm")
    expected = run_expression(lambda a, b: involution2d(a, b, 1, 1, 1, layout, 3), [x, kernel], "float32")
    for batch in (1, 2):
        result = tvm.runtime.empty((batch, *x.shape[1:]), "float32")
        library["main"](*(tvm.runtime.tensor(array[:batch]) for array in (x, kernel)), result)
        assert relative_norm(result.numpy(), expected[:batch]) < 1e-5


def test_an_int_is_a_pair_of_it():
    x, kernel = te.placeholder((1, 4, 9, 9)), te.placeholder((1, 2, 3, 3, 4, 4))
    funcs = [
        te.create_prim_func([x, kernel, involution2d(x, kernel, *arguments)])
        for arguments in ((2, 1, 2), ((2, 2), [1, 1], (np.int64(2), 2)))
    ]
    tvm.ir.assert_structural_equal(*funcs)


@pytest.mark.parametrize(
    ("dtype", "padding", "blocks"),
    [
        ("float32", 0, ["involution2d"]),
        ("float32", 1, ["pad_temp", "involution2d"]),
        ("float16", 1, ["pad_temp", "involution2d", "involution2d_cast"]),
    ],
)
def test_blocks_that_schedules_look_for(dtype, padding, blocks):
    size = 4 + 2 * padding
    x, kernel = te.placeholder((1, 4, 6, 6), dtype), te.placeholder((1, 2, 3, 3, size, size), dtype)
    schedule = s_tir.Schedule(te.create_prim_func([x, kernel, involution2d(x, kernel, 1, padding)]))
    root = schedule.get_sblock("root")
    assert [schedule.get(block).name_hint for block in schedule.get_child_blocks(root)] == blocks


@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_nan_spreads_over_its_windows_and_infinity_times_zero_is_nan(rng, scheduled):
    x, kernel = make_inputs(rng, (1, 2, 1, 5, 5, (3, 3), (1, 1), (1, 1), (1, 1)), "float32")
    x[0, 0, 2, 2], x[0, 1, 0, 0], kernel[0, 0, 1, 1, 0, 0] = np.nan, np.inf, 0
    actual = run_expression(
        lambda a, b: involution2d(a, b, padding=1), [x, kernel], "float32", "Reduction" if scheduled else None
    )
    with np.errstate(invalid="ignore"):
        expected = reference(x, kernel, padding=(1, 1))
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))


@pytest.mark.parametrize(
    ("x", "kernel", "arguments", "words"),
    [
        ((1, 5, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": 1}, "multiple of the kernel's 2 groups"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 5, 4), {"padding": 1}, "must be (1, 4, 4)"),
        ((1, 4, 4), (1, 2, 3, 3, 4, 4), {}, "rank 4"),
        ((1, 4, 4, 4), (1, 18, 4, 4), {"padding": 1}, "needs kernel_size"),
        ((1, 4, 4, 4), (1, 17, 4, 4), {"padding": 1, "kernel_size": 3}, "3x3 taps"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"stride": 0}, "stride"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": (1, 1, 1)}, "padding"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"stride": "22"}, "got '22'"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"dilation": 1.5}, "got 1.5"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": -1}, "at least 0"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"layout": "CHWN"}, "layout"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": 1, "kernel_size": 5}, "contradicts"),
        ((2, 4, 4, 4), (1, 2, 3, 3, 4, 4), {"padding": 1}, "must be (2, 4, 4)"),
        ((1, 4, 4, 4), (1, 2, 5, 5, 0, 4), {}, "window of 5x5 pixels"),
        ((1, 4, 4, 4), (1, 2, 3, 3, 1, 1), {"dilation": (1, 2)}, "window of 3x5 pixels"),
    ],
)
def test_errors_say_what_is_wrong(x, kernel, arguments, words):
    with pytest.raises(UserError) as error:
        involution2d(te.placeholder(x, "float32"), te.placeholder(kernel, "float32"), **arguments)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("int8", "int8")])
def test_dtypes_must_agree_and_be_floating(dtypes):
    with pytest.raises(UserError, match=f"one dtype of float64, .*got x {dtypes[0]}, kernel {dtypes[1]}"):
        involution2d(te.placeholder((1, 4, 4, 4), dtypes[0]), te.placeholder((1, 2, 3, 3, 2, 2), dtypes[1]))
