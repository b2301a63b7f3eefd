# SPDX-License-Identifier: Apache-2.0
"""What there is to tune: the tensor programs of a network, each once, with the space to search."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import ModuleType

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from ..frontend.importer import import_exported_program
from ..frontend.network import Network
from ..records.tuning_records import as_workload
from ..relax import pipeline
from ..relax.passes.apply_schedules import SOURCE_ATTR
from ..schedules import default_schedule, rules_for

METASCHEDULE = "MetaSchedule"
_log = logging.getLogger(__name__)


@dataclass
class TuningTask:
    """A tensor program that the network runs `calls` times."""

    name: str
    mod: tvm.IRModule
    """the workload: the program as `main`"""
    target: tvm.target.Target
    calls: int
    operations: float
    """floating-point operations of one run, a multiply-add counted as two"""
    rule: str
    """the rule that gives the space, `MetaSchedule`, or "" where there is none"""
    default: s_tir.Schedule
    """what runs where nothing is tuned"""
    spaces: list[s_tir.Schedule] = field(repr=False, default_factory=list)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the inputs and the output."""
        return tuple(tuple(int(d) for d in buffer.shape) for buffer in self.mod["main"].params)

    @property
    def args_info(self) -> list[ms.arg_info.ArgInfo]:
        """The arguments as a record names them."""
        return ms.arg_info.ArgInfo.from_prim_func(self.mod["main"])

    @property
    def has_record(self) -> bool:
        """Whether a record can hold the schedule: TVM 0.27 writes no trace with regions that were set by hand."""
        workload = ms.database.Workload(self.mod)
        try:
            ms.database.TuningRecord(self.default.trace, workload, [], self.target, self.args_info).as_json()
        except TypeError:
            return False
        return True


@dataclass(frozen=True)
class Program:
    """A tensor program that the network runs `calls` times."""

    name: str
    mod: tvm.IRModule
    """the workload: the program as `main`, without a schedule"""
    calls: int


def extract_programs(
    network: Network,
    target: tvm.target.Target,
    *,
    batch: int | Sequence[int] | None = None,
    dtype: str | None = None,
    tf32: bool = False,
) -> list[Program]:
    """Return the programs of a network that take a schedule, each once, in no order.

    Programs that are equal but for their names are one; several batch sizes give the programs of all.

    Raises:
        UserError: a batch size or dtype that the network cannot have.
    """
    functions = {}
    for size in network.batch_sizes(batch):
        main = import_exported_program(network.export(size))["main"]
        functions[f"batch_{size}"] = main.with_attr("global_symbol", f"batch_{size}")
    mod = pipeline.run(
        tvm.IRModule(functions), target, dtype=network.resolve_dtype(dtype), until="lower operators", tf32=tf32
    )
    calls = _count_calls(mod)
    programs: dict[int, Program] = {}
    for var, func in mod.functions_items():
        if not isinstance(func, tirx.PrimFunc) or not calls[var.name_hint]:
            continue
        if SOURCE_ATTR in (func.attrs or {}):
            continue  # plain loops, which no schedule applies to
        workload = as_workload(func)
        key = tvm_ffi.structural_hash(workload)
        if key in programs:
            programs[key] = replace(programs[key], calls=programs[key].calls + calls[var.name_hint])
        else:
            programs[key] = Program(var.name_hint, workload, calls[var.name_hint])
    return list(programs.values())


def extract_tasks(
    network: Network,
    target: tvm.target.Target,
    *,
    batch: int | Sequence[int] | None = None,
    dtype: str | None = None,
) -> list[TuningTask]:
    """Return the tasks of a network, those with the most operations first: its programs, as `extract_programs`.

    Raises:
        UserError: a batch size or dtype that the network cannot have.
    """
    programs = extract_programs(network, target, batch=batch, dtype=dtype)
    tasks = [_task(program.name, program.mod, target, program.calls) for program in programs]
    return sorted((task for task in tasks if task.has_record), key=lambda task: -task.calls * task.operations)


def _task(name: str, workload: tvm.IRModule, target: tvm.target.Target, calls: int) -> TuningTask:
    operations = float(s_tir.analysis.estimate_tir_flops(workload))
    default, _ = default_schedule(workload["main"], target)
    task = TuningTask(name, workload, target, calls, operations, "", default or s_tir.Schedule(workload))
    for rule in rules_for(target):
        try:
            spaces = rule.apply(workload["main"], target, tunable=True)
        except (RuntimeError, ValueError) as error:
            _log.warning("%s has no space for %s: %s", rule.name, name, str(error).splitlines()[0])
            continue
        if spaces is not None:
            assert isinstance(spaces, list)
            task.rule, task.spaces = rule.name, spaces
            return task
    try:
        task.spaces = list(_metaschedule_context(task).generate_design_space())
        task.rule = METASCHEDULE
    except (RuntimeError, ValueError) as error:  # what it cannot schedule keeps the default
        _log.warning("MetaSchedule has no space for %s: %s", name, str(error).splitlines()[0])
    return task


def search_context(task: TuningTask, logger: logging.Logger, threads: int) -> ms.TuneContext:
    """Return MetaSchedule's context for searching the spaces of `task`."""
    if task.rule == METASCHEDULE:
        return _metaschedule_context(task, logger, threads)
    # A rule's space is small and every point of it is valid: sampling it and ranking by the cost model needs neither
    # postprocessors nor generations.
    with _no_tensor_intrinsics():
        return ms.TuneContext(
            task.mod,
            target=task.target,
            space_generator=ms.space_generator.ScheduleFn(lambda _: task.spaces, [], [], {}),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=128, init_min_unmeasured=1, genetic_num_iters=0, eps_greedy=0.25
            ),
            task_name=task.name,
            num_threads=threads,
            logger=logger,
        ).clone()


@contextmanager
def _no_tensor_intrinsics() -> Iterator[None]:
    """Keep a TuneContext from importing the tensor intrinsics of all architectures, which takes 40 s (TVM 0.27).

    Only MetaSchedule's own spaces refer to them.
    """
    name = "tvm.s_tir.tensor_intrin"
    stand_in = None if name in sys.modules else ModuleType(name)
    if stand_in is not None:
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        if stand_in is not None:
            del sys.modules[name]


def _metaschedule_context(task: TuningTask, logger: logging.Logger | None = None, threads: int = 1) -> ms.TuneContext:
    with task.target:
        return ms.TuneContext(
            task.mod,
            target=task.target,
            space_generator="post-order-apply",
            search_strategy=ms.search_strategy.EvolutionarySearch(population_size=256, init_min_unmeasured=8),
            task_name=task.name,
            num_threads=threads,
            logger=logger,
        ).clone()


def _count_calls(mod: tvm.IRModule) -> Counter[str]:
    """Return how often each program runs when every public function is called once."""
    bodies: dict[str, Counter[str]] = {}
    for var, func in mod.functions_items():
        if isinstance(func, relax.Function):
            bodies[var.name_hint] = _calls_in(func)
    called = {name for body in bodies.values() for name in body if name in bodies}
    calls: Counter[str] = Counter()

    def add(name: str, times: int) -> None:
        for callee, count in bodies[name].items():
            if callee in bodies:
                add(callee, times * count)
            else:
                calls[callee] += times * count

    for name in bodies.keys() - called:
        add(name, 1)
    return calls


def _calls_in(func: relax.Function) -> Counter[str]:
    calls: Counter[str] = Counter()

    def visit(expr: relax.Expr) -> None:
        if isinstance(expr, relax.Call) and getattr(expr.op, "name", "") == "relax.call_tir":
            calls[expr.args[0].name_hint] += 1
        elif isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.GlobalVar):
            calls[expr.op.name_hint] += 1

    relax.analysis.post_order_visit(func, visit)
    return calls
