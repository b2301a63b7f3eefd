# SPDX-License-Identifier: Apache-2.0
"""Blocks that join others' loops get what a turn of the loop has, or the schedule is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tvm import s_tir, te, tirx

import tvm_involution.schedules as schedules
from tvm_involution.schedules.intervals import Interval, interval_of, limits_of
from tvm_involution.schedules.placing import WrongRegionError, compute_at, reverse_compute_at
from tvm_involution.schedules.rule import default_or_space


def rows(length: int) -> s_tir.Schedule:
    """Sums over `length` numbers, of which parts are added up first."""
    x, k = te.placeholder((4, length), "float32", "x"), te.reduce_axis((0, length), "k")
    return s_tir.Schedule(te.create_prim_func([x, te.compute((4,), lambda i: te.sum(x[i, k], axis=k), "sums")]))


def add_up_parts(sch: s_tir.Schedule, parts: int) -> s_tir.Schedule:
    """Have each of `parts` threads sum its share into shared memory, where one adds up all."""
    sums = sch.get_sblock("sums")
    row, k = sch.get_loops(sums)
    steps, part = sch.split(k, [None, parts])
    sch.reorder(part, steps)
    partial = sch.rfactor(part, 0)
    row, part, steps = sch.get_loops(partial)
    sch.bind(row, "blockIdx.x")
    sch.bind(part, "threadIdx.x")
    shared = sch.cache_write(partial, 0, "local")
    reverse_compute_at(sch, shared, part, preserve_unit_loops=False)
    sch.set_scope(shared, 0, "shared")
    sch.decompose_reduction(partial, steps)
    reverse_compute_at(sch, sums, row)
    return sch


def test_parts_without_numbers_are_refused():
    """49 numbers in 64 parts: those above 48 write nothing, and TVM reads all."""
    assert add_up_parts(rows(49), 7) is not None
    assert add_up_parts(rows(130), 64) is not None  # unevenly split, and right
    with pytest.raises(WrongRegionError, match=r"sums reads .* from 0 to 63 on axis 0 .* expected 0 to 48"):
        add_up_parts(rows(49), 64)


def test_a_variant_that_would_be_wrong_is_none():
    def schedule(parts: int) -> s_tir.Schedule:
        return add_up_parts(rows(49), parts)

    assert len(default_or_space([7, 64, 49], schedule, tunable=True)) == 2
    assert default_or_space([64], schedule, tunable=True) is None
    with pytest.raises(s_tir.ScheduleError):
        default_or_space([64, 7], schedule, tunable=False)


def test_halos_are_no_error():
    x = te.placeholder((40,), "float32", "x")
    padded = te.compute((42,), lambda i: tirx.if_then_else(tirx.all(i > 0, i < 41), x[i - 1], 0.0), "padded")
    k = te.reduce_axis((0, 3), "k")
    sch = s_tir.Schedule(te.create_prim_func([x, te.compute((40,), lambda i: te.sum(padded[i + k], axis=k), "window")]))
    outer, _ = sch.split(sch.get_loops(sch.get_sblock("window"))[0], [None, 8])
    compute_at(sch, sch.get_sblock("padded"), outer)
    assert int(sch.get(sch.get_loops(sch.get_sblock("padded"))[-1]).extent) == 10


def test_rules_place_blocks_by_the_checked_functions():
    folder = Path(schedules.__file__).parent
    for path in folder.rglob("*.py"):
        unchecked = re.findall(r"\bsch\.(?:reverse_)?compute_at\(", path.read_text())
        assert not unchecked or path.name == "placing.py", path


def test_intervals(rng):
    """Every index lies in its interval, whose ends are reached where it says so."""
    a, b = tirx.Var("a", "int32"), tirx.Var("b", "int32")
    shapes = [
        (lambda a, b: a * 4 + b, None),
        (lambda a, b: a * 4 - b * 3, None),
        (lambda a, b: (a * 5 + b) // 7, None),
        (lambda a, b: (a * 5 + b) % 7, None),
        (lambda a, b: a * 4 + b, 9),
    ]
    for make, most in shapes:
        for _ in range(20):
            ends = [sorted(int(n) for n in rng.integers(0, 9, 2)) for _ in range(2)]
            known = {var: Interval(*pair) for var, pair in zip((a, b), ends, strict=True)}
            expr = make(a, b)
            values = [make(i, j) for i in range(ends[0][0], ends[0][1] + 1) for j in range(ends[1][0], ends[1][1] + 1)]
            predicate = tirx.const(True) if most is None else expr < most + 1
            values = [value for value in values if most is None or value <= most]
            found = interval_of(expr, known, limits_of(predicate))
            if found is None:
                assert not values
                continue
            assert all(found.low <= value <= found.high for value in values)
            if found.exact and most is None:
                assert (found.low, found.high) == (min(values), max(values))


def doubled_and_increased(tile: int, threads: int) -> s_tir.Schedule:
    """Tiles of 48 numbers, doubled in shared memory by `threads`; what joins behind their split takes its part."""
    x = te.placeholder((48,), "float32", "x")
    doubled = te.compute((48,), lambda i: x[i] * 2, "doubled")
    sch = s_tir.Schedule(te.create_prim_func([x, te.compute((48,), lambda i: doubled[i] + 1, "increased")]))
    block = sch.get_sblock("doubled")
    outer, inner = sch.split(sch.get_loops(block)[0], [None, tile])
    sch.bind(outer, "blockIdx.x")
    sch.set_scope(block, 0, "shared")
    sch.bind(sch.split(inner, [None, threads])[1], "threadIdx.x")
    reverse_compute_at(sch, sch.get_sblock("increased"), outer)
    return sch


def test_an_uneven_split_is_a_trap():
    """Two numbers shared among four threads: TVM gives what joins behind four of them, of two blocks."""
    doubled_and_increased(6, 3)
    with pytest.raises(WrongRegionError, match=r"increased (reads|runs) .* expected"):
        doubled_and_increased(2, 4)
