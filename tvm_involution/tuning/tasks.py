# SPDX-License-Identifier: Apache-2.0
"""What there is to tune: the tensor programs of a network, each once, with the space to search."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir import meta_schedule as ms

from ..frontend.importer import import_exported_program
from ..frontend.network import Network
from ..records.database import record_as_json
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
    """the rule that gives the default, "" where there is none"""
    default: s_tir.Schedule
    """what runs where nothing is tuned"""

    @cached_property
    def spaces(self) -> list[s_tir.Schedule]:
        """The structural variants of the rule's space, made when first asked for; those that a record can hold."""
        for rule in rules_for(self.target):
            try:
                spaces = rule.apply(self.mod["main"], self.target, tunable=True)
            except (RuntimeError, ValueError) as error:
                _log.warning("%s has no space for %s: %s", rule.name, self.name, str(error).splitlines()[0])
                continue
            if spaces is not None:
                assert isinstance(spaces, list)
                held = [sch for sch in spaces if self.can_record(sch)]
                if len(held) < len(spaces):
                    _log.warning(
                        "%s: no record can hold %d of %d variants of %s, which are left out",
                        *(self.name, len(spaces) - len(held), len(spaces), rule.name),
                    )
                return held
        return []

    @property
    def evolves(self) -> bool:
        """Whether MetaSchedule's own space is searched too."""
        return self._is_general and not self._aborts

    @property
    def space(self) -> str:
        """What is searched, for reports: the rule's name, `MetaSchedule`, both or ""."""
        return " + ".join([*([self.rule] if self.spaces else []), *([METASCHEDULE] if self.evolves else [])])

    @property
    def left_out(self) -> str:
        """Why there is nothing to search, "" where there is something."""
        if self.evolves or self.spaces:
            return ""
        return "MetaSchedule aborts on pooling" if self._aborts else f"{self.rule} has no space that a record can hold"

    @property
    def _is_general(self) -> bool:
        return not self.rule or any(rule.name == self.rule and rule.general for rule in rules_for(self.target))

    @property
    def _aborts(self) -> bool:
        # and takes the process with it
        return self.target.kind.name == "cuda" and "pool" in self.name

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the inputs and the output."""
        return tuple(tuple(int(d) for d in buffer.shape) for buffer in self.mod["main"].params)

    @property
    def args_info(self) -> list[ms.arg_info.ArgInfo]:
        """The arguments as a record names them."""
        return ms.arg_info.ArgInfo.from_prim_func(self.mod["main"])

    def can_record(self, sch: s_tir.Schedule) -> bool:
        """Return whether a record can hold a schedule of this task."""
        workload = ms.database.Workload(self.mod)
        try:
            record_as_json(ms.database.TuningRecord(sch.trace, workload, [], self.target, self.args_info))
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
    tasks = [_task(program, target) for program in programs]
    return sorted(tasks, key=lambda task: -task.calls * task.operations)


def _task(program: Program, target: tvm.target.Target) -> TuningTask:
    operations = float(s_tir.analysis.estimate_tir_flops(program.mod))
    default, rule = default_schedule(program.mod["main"], target)
    return TuningTask(
        program.name, program.mod, target, program.calls, operations, rule, default or s_tir.Schedule(program.mod)
    )


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
