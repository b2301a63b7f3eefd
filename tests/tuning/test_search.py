# SPDX-License-Identifier: Apache-2.0
"""What is proposed: every point of a rule's space once, the best's neighbours first; MetaSchedule's own space."""

from __future__ import annotations

import logging

import numpy as np
import torch
import tvm
from tvm.s_tir import meta_schedule as ms

from tvm_involution import lowering
from tvm_involution.frontend.network import resolve_network
from tvm_involution.target import reference_cpu, resolve_target
from tvm_involution.tuning.scheduler import TaskState, worth_it
from tvm_involution.tuning.search import EvolvedSearch, PointSearch
from tvm_involution.tuning.tasks import METASCHEDULE, TuningTask, extract_tasks


def tasks_of(module: torch.nn.Module, *shape: int, target: str = "llvm", dtype: str = "float32") -> list[TuningTask]:
    network = resolve_network((module.eval(), torch.zeros(shape)))
    return extract_tasks(network, resolve_target(target), dtype=dtype)


def test_every_point_comes_once():
    task = next(t for t in tasks_of(torch.nn.Conv2d(8, 64, 3), 1, 8, 14, 14) if t.rule == "PackedGemm")
    search = PointSearch(task.mod, task.default, task.spaces, {})
    points, found = len(search), []
    while schedules := search.propose(7):
        found += schedules
        search.learn([1.0 + len(str(sch.trace)) % 5 for sch in schedules])
    assert points // 2 < len(found) <= points
    texts = {str(sch.trace) for sch in found}
    assert len(texts) == len(found)
    known = dict.fromkeys(texts, 1.0)
    assert not PointSearch(task.mod, task.default, task.spaces, known).propose(99), "what was measured comes again"


def test_the_neighbours_of_the_best_come_first():
    task = next(t for t in tasks_of(torch.nn.Conv2d(64, 64, 1), 1, 64, 14, 14) if t.rule == "PackedGemm")
    search = PointSearch(task.mod, task.default, task.spaces, {})
    first = search.propose(len(task.spaces))
    best = len(first) // 2
    search.learn([float(i != best) + 1e-3 for i in range(len(first))])
    (after,) = search.propose(1)

    def decisions(sch):
        return [int(value) for value in sch.trace.decisions.values()]

    assert [str(inst.kind) for inst in after.trace.insts] == [str(inst.kind) for inst in first[best].trace.insts]
    assert sum(a != b for a, b in zip(decisions(after), decisions(first[best]), strict=True)) == 1


def test_what_only_a_general_rule_takes_evolves(rng):
    (task,) = (t for t in tasks_of(torch.nn.Softmax(2), 1, 4, 6, 33) if t.rule == "Reduction")
    assert METASCHEDULE in task.space
    model = ms.cost_model.RandomModel()
    search = EvolvedSearch(task, {}, ms.database.MemoryDatabase(), model, logging.getLogger("test"), 1)
    found = search.propose(3)
    assert found
    search.learn([1.0] * len(found))
    x = rng.standard_normal((1, 4, 6, 33)).astype("float32")
    results = []
    for mod in (task.mod, found[0].mod):
        out = tvm.runtime.empty(x.shape, "float32")
        lowering.build(mod, reference_cpu())["main"](tvm.runtime.tensor(x), out)
        results.append(out.numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_specific_rules_and_short_tasks_do_not_evolve():
    tasks = tasks_of(torch.nn.Conv2d(8, 16, 3), 1, 8, 14, 14)
    assert [task.evolves for task in tasks if task.rule == "PackedGemm"] == [False]
    long, short = TaskState(tasks[0], [1.0]), TaskState(tasks[0], [1e-6])
    assert worth_it([short, long]) == [long]


def test_pooling_on_gpus_is_left_out_by_name():
    pool, *_ = tasks_of(torch.nn.MaxPool2d(3, 2), 1, 8, 17, 17, target="nvidia/nvidia-h100")
    assert not pool.evolves and "pooling" in pool.left_out
    other = next(t for t in tasks_of(torch.nn.Conv2d(64, 128, 3), 1, 64, 14, 14, target="nvidia/nvidia-h100"))
    assert not other.left_out
