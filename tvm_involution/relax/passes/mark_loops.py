# SPDX-License-Identifier: Apache-2.0
"""Mark tensor programs that come scheduled, as TVM's sorting does: `ApplySchedules` leaves marked ones be.

For a CPU these are plain loops or calls without a root block, from which schedule rules start; for a GPU, blocks
without axes, which launch their own threads.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...schedules.rule import blocks_of
from .apply_schedules import SOURCE_ATTR


@tvm.transform.module_pass(opt_level=0, name="MarkLoops")
class MarkLoops:
    """Count every `PrimFunc` that comes scheduled as one that no rule was made for."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those functions marked."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and _is_scheduled(func):
                mod[name] = func.with_attr(SOURCE_ATTR, "fallback")
        return mod


def _is_scheduled(func: tirx.PrimFunc) -> bool:
    # an extern's only block bears its own name
    if not isinstance(func.body, s_tir.SBlockRealize) or func.body.block.name_hint != "root":
        return True
    sch = s_tir.Schedule(func)
    return not all(sch.get(block).iter_vars for block in blocks_of(sch))
