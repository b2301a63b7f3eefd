# SPDX-License-Identifier: Apache-2.0
"""HOW it is computed: schedule rules, one a file, tried in the order of the two lists below.

A rule is a `ScheduleRule`: `apply(func, target, tunable)` returns a schedule, a list of them (a design space), or None
for "not mine". Adding a rule touches its file and one line here.
"""

from __future__ import annotations

import tvm

from . import cpu, gpu
from .rule import ScheduleRule

CPU_RULES: tuple[ScheduleRule, ...] = (
    cpu.Involution(),
    cpu.PackedGemm(),
    cpu.Reduction(),
    cpu.Elementwise(),
)

GPU_RULES: tuple[ScheduleRule, ...] = (gpu.ThreadPerOutput(),)


def rules_for(target: tvm.target.Target) -> tuple[ScheduleRule, ...]:
    """Return the rules for the kind of `target`, in the order in which they are tried."""
    return GPU_RULES if target.kind.name == "cuda" else CPU_RULES
