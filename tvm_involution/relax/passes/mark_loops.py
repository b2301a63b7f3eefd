# SPDX-License-Identifier: Apache-2.0
"""Mark tensor programs that are plain loops or calls, without a root block: suppression, RoIAlign, sorting.

Schedule rules start from it; these programs have their order of loops, and `ApplySchedules` leaves marked ones be.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from .apply_schedules import SOURCE_ATTR


@tvm.transform.module_pass(opt_level=0, name="MarkLoops")
class MarkLoops:
    """Count every `PrimFunc` without a root block as one without a schedule of ours."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with those functions marked."""
        for name, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not _has_root(func):
                mod[name] = func.with_attr(SOURCE_ATTR, "fallback")
        return mod


def _has_root(func: tirx.PrimFunc) -> bool:
    """Return whether the body is the root block of a tensor expression; an extern's only block bears its own name."""
    return isinstance(func.body, s_tir.SBlockRealize) and func.body.block.name_hint == "root"
