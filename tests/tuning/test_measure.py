# SPDX-License-Identifier: Apache-2.0
"""Candidates that crash, hang, do not build or compute something else cost themselves alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tvm import s_tir, te, tirx

from tvm_involution.records.tuning_records import as_workload
from tvm_involution.target import resolve_target
from tvm_involution.tuning import measure
from tvm_involution.tuning.clock import Clock
from tvm_involution.tuning.measure import Candidate, Measurer
from tvm_involution.tuning.tasks import TuningTask
from tvm_involution.tuning.verify import Verifier


def candidate(value) -> Candidate:
    """A program that writes `value(x[i])` to each of 64 elements."""
    x = te.placeholder((64,), "float32", "x")
    func = te.create_prim_func([x, te.compute((64,), lambda i: value(x[i]), name="out")])
    sch = s_tir.Schedule(as_workload(func))
    return Candidate(sch, measure.ms.arg_info.ArgInfo.from_prim_func(sch.mod["main"]))


def good() -> Candidate:
    return candidate(lambda x: x + 1.0)


@pytest.fixture
def measurer(monkeypatch) -> Iterator[Measurer]:
    monkeypatch.setattr(measure, "RUN_SECONDS", 10.0)
    with Measurer(resolve_target("llvm"), repeat=2) as found:
        yield found


def call(symbol: str, *arguments: object) -> Candidate:
    return candidate(lambda x: x + tirx.call_extern("int32", symbol, *arguments).astype("float32"))


def test_each_failure_is_its_own(measurer):
    results = measurer.measure([good(), call("abort"), good(), call("pause"), call("no_such_symbol"), good()])
    assert [result.seconds is not None for result in results] == [True, False, True, False, False, True]
    assert all(0 < result.seconds < 1 for result in results if result.seconds is not None)
    assert all(result.error for result in results if result.seconds is None)
    assert measurer.measure([good()])[0].seconds is not None


def test_what_hangs_when_the_time_is_up_is_not_waited_for_nor_judged():
    clock = Clock()
    with Measurer(resolve_target("llvm"), repeat=2, clock=clock, minutes=10) as measurer:
        measurer.measure([good()])
        clock.started -= 600
        fine, hangs, crashes = measurer.measure([good(), call("pause"), call("abort")])
    assert fine.seconds is not None and not fine.lost
    assert hangs.seconds is None and hangs.lost
    assert crashes.seconds is None and not crashes.lost


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_indices_stay_inside(measurer, dtype):
    table, index = te.placeholder((2, 8), "float32", "table"), te.placeholder((1 << 16,), dtype, "index")
    # a step of gigabytes: any other index would not be missed
    step = te.compute((1 << 16, 8), lambda i, j: table[index[i] << 24, j], name="out")
    sch = s_tir.Schedule(as_workload(te.create_prim_func([table, index, step])))
    (result,) = measurer.measure([Candidate(sch, measure.ms.arg_info.ArgInfo.from_prim_func(sch.mod["main"]))])
    assert result.seconds is not None, result.error


def test_what_was_built_is_removed():
    with Measurer(resolve_target("llvm"), repeat=2) as measurer:
        artifact = measurer.measure([good()])[0].artifact
        assert artifact.is_file()
    assert not artifact.exists()


def test_wrong_results_are_found(measurer):
    task_of = good()
    task = TuningTask("add", task_of.schedule.mod, resolve_target("llvm"), 1, 64.0, "", default=task_of.schedule)
    verifier = Verifier(task)
    right, wrong, crash = measurer.measure([good(), candidate(lambda x: x + 1.001), call("abort")])
    assert verifier.error(measurer, right.artifact) is None
    assert "wrong results" in verifier.error(measurer, wrong.artifact)
    assert "crashed" in verifier.error(measurer, crash.artifact)
    assert verifier.error(measurer, right.artifact) is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_dtypes_are_checked(measurer, dtype):
    x = te.placeholder((5, 7), dtype, "x")
    func = te.create_prim_func([x, te.compute((5, 7), lambda i, j: x[i, j] * tirx.const(2, dtype), name="out")])
    sch = s_tir.Schedule(as_workload(func))
    task = TuningTask("twice", sch.mod, resolve_target("llvm"), 1, 35.0, "", default=sch)
    result = measurer.measure([Candidate(sch, task.args_info)])[0]
    assert Verifier(task).error(measurer, result.artifact) is None
