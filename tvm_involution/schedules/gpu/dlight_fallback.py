# SPDX-License-Identifier: Apache-2.0
"""TVM's own dlight default, for what no other rule takes."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.s_tir import dlight

from ..rule import ScheduleRule


class DlightFallback(ScheduleRule):
    """Spread every block over threads as `dlight.gpu.Fallback` does."""

    general = True

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        return None if tunable else dlight.gpu.Fallback().apply(func, target, False)
