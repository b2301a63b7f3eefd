# SPDX-License-Identifier: Apache-2.0
"""Suppression: an image a task, for each box waits for the ones before it."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...te.blocks import Block
from ..rule import ScheduleRule, find_block


class NMS(ScheduleRule):
    """Schedule the block `nms` of `te.nms`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, Block.NMS)
        if block is None:
            return None
        sch.parallel(sch.get_loops(block)[0])
        return [sch] if tunable else sch
