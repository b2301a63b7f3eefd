# SPDX-License-Identifier: Apache-2.0
"""RoIAlign: a region a task, and several vectors of channels at a time, which share a sample's place and weights."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...target import vector_bytes
from ...te.blocks import Block
from ..rule import ScheduleRule, choose, divisors, find_block, largest_divisor

_VECTORS = 4


class RoIAlign(ScheduleRule):
    """Schedule the block `roi_align` of `te.roi_align`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, Block.ROI_ALIGN)
        if block is None:
            return None
        region, _, _, channel = sch.get_loops(block)
        channels, lanes = int(sch.get(channel).extent), vector_bytes(target) // 4
        widths = [width for width in divisors(channels, 2 * _VECTORS * lanes) if width % lanes == 0]
        width = largest_divisor(channels, _VECTORS * lanes)
        _, lane = sch.split(channel, [None, choose(sch, widths or [width], width, tunable)])
        sch.vectorize(lane)
        sch.parallel(region)
        return [sch] if tunable else sch
