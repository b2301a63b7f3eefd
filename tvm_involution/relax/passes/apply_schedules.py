# SPDX-License-Identifier: Apache-2.0
"""Give every tensor program a schedule: a tuning record where one exists, else the first rule that takes it.

Each scheduled function carries the attribute `tvm_involution.schedule`: `record`, `borrowed` (a record of another
target, batch or size), `rule` or `fallback` (no rule was made for it), which `count_kernels` sums up for `inspect`; and
`tvm_involution.rule`: the rule's name, or the target of the record.
"""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import s_tir, tirx

from ...records.tuning_records import TuningRecords
from ...runtime.metadata import KernelCoverage
from ...schedules import default_schedule, is_fallback

SOURCE_ATTR = "tvm_involution.schedule"
RULE_ATTR = "tvm_involution.rule"


@tvm.transform.module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Schedule every `PrimFunc` of the module for `target`."""

    def __init__(self, target: tvm.target.Target, records: TuningRecords | None = None):
        self.target = target
        self.records = records

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every tensor program scheduled."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and SOURCE_ATTR not in (func.attrs or {}):
                mod[name] = self._schedule(func)
        return mod

    def _schedule(self, func: tirx.PrimFunc) -> tirx.PrimFunc:
        recorded = self.records.find(func) if self.records is not None else None
        if recorded is not None:
            assert self.records is not None
            own = recorded.key == self.records.key and not recorded.lent
            return _mark(recorded.schedule, "record" if own else "borrowed", recorded.origin)
        sch, rule = default_schedule(func, self.target)
        if sch is not None:
            return _mark(sch, "fallback" if is_fallback(func, rule, self.target) else "rule", rule)
        return func.with_attr(SOURCE_ATTR, "fallback")


def _mark(sch: s_tir.Schedule, source: str, rule: str) -> tirx.PrimFunc:
    func = sch.mod["main"]
    return func.with_attr(SOURCE_ATTR, source).with_attr(RULE_ATTR, rule).with_attr("tirx.is_scheduled", True)


def count_kernels(mod: tvm.IRModule) -> KernelCoverage:
    """Count the tensor programs of a scheduled module by where their schedules came from."""
    sources: Counter[str] = Counter()
    lenders = set()
    rules: Counter[str] = Counter()
    for _, func in mod.functions_items():
        if isinstance(func, tirx.PrimFunc) and func.attrs and SOURCE_ATTR in func.attrs:
            source = str(func.attrs[SOURCE_ATTR])
            sources[source] += 1
            if source in ("rule", "fallback") and RULE_ATTR in func.attrs:
                rules[str(func.attrs[RULE_ATTR])] += 1
            if source == "borrowed":
                lenders.add(str(func.attrs[RULE_ATTR]))
    return KernelCoverage(
        total=sum(sources.values()),
        record=sources["record"] + sources["borrowed"],
        rule=sources["rule"],
        fallback=sources["fallback"],
        borrowed=sources["borrowed"],
        borrowed_from=", ".join(sorted(lenders)),
        by_rule=dict(rules.most_common()),
    )
