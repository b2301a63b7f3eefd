# SPDX-License-Identifier: Apache-2.0
"""HOW it is computed: schedule rules, one a file, tried in the order of the two lists below.

A rule is a `ScheduleRule`: `apply(func, target, tunable)` returns a schedule, a list of them (a design space), or None
for "not mine". Adding a rule touches its file and one line here.
"""

from __future__ import annotations

import logging

import tvm
from tvm import s_tir, tirx

from . import cpu, gpu
from .contraction import is_contraction
from .rule import ScheduleRule

CPU_RULES: tuple[ScheduleRule, ...] = (
    cpu.SpannedInvolution(),
    cpu.Involution(),
    cpu.LocalAttention(),
    cpu.AmxGemm(),
    cpu.PackedGemm(),
    cpu.DepthwiseConvolution(),
    cpu.Winograd(),
    cpu.Strassen(),
    cpu.Interpolation(),
    cpu.PasteMasks(),
    cpu.RoIAlign(),
    cpu.NMS(),
    cpu.Rows(),
    cpu.Reduction(),
    cpu.Elementwise(),
)

GPU_RULES: tuple[ScheduleRule, ...] = (
    gpu.Involution(),
    gpu.InvolutionNCHW(),
    gpu.LocalAttention(),
    gpu.SpannedInvolution(),
    gpu.TensorCoreInvolution(),
    gpu.TensorCoreGemm(),
    gpu.CudaCoreGemm(),
    gpu.NMS(),
    gpu.Reduction(),
    gpu.ThreadPerOutput(),
    gpu.DlightFallback(),
)

_log = logging.getLogger(__name__)


def rules_for(target: tvm.target.Target) -> tuple[ScheduleRule, ...]:
    """Return the rules for the kind of `target`, in the order in which they are tried."""
    return GPU_RULES if target.kind.name == "cuda" else CPU_RULES


def default_schedule(func: tirx.PrimFunc, target: tvm.target.Target) -> tuple[s_tir.Schedule | None, str]:
    """Return the default schedule of the first rule that takes `func` and that rule's name; (None, "") where none does.

    A rule that trips over a program must not take the network down: the next one is correct too.
    """
    for rule in rules_for(target):
        try:
            sch = rule.apply(func, target)
        except (RuntimeError, ValueError) as error:
            _log.warning("%s could not schedule a kernel: %s", rule.name, str(error).splitlines()[0])
            continue
        if sch is not None:
            assert isinstance(sch, s_tir.Schedule)
            return sch, rule.name
    return None, ""


def is_fallback(func: tirx.PrimFunc, rule: str, target: tvm.target.Target) -> bool:
    """Return whether the unscheduled `func` sums products and yet fell to a rule for programs of any kind."""
    return any(taker.name == rule and taker.general for taker in rules_for(target)) and is_contraction(func)
