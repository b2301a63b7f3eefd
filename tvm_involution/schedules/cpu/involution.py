# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation in NHWC: a strip of neighbouring pixels by one vector of a group's channels.

The strip's sums stay in registers; a row of the window loads each x vector once for all the pixels that see it,
and each kernel value is one broadcast. 49 taps of 16 channels are 49 multiply-adds of an AVX-512 register.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...target import vector_bytes
from ..rule import ScheduleRule, find_block, fuse_epilogue, largest_divisor, loop_extents
from .elementwise import schedule_producers

# sums of a strip; with the x vectors in flight they must fit the registers (32 of AVX-512, else 16)
_STRIP_512, _STRIP = 14, 7


class Involution(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> involution2d -> epilogue` of an NHWC involution."""

    def apply(self, func: tirx.PrimFunc, target: tvm.target.Target) -> s_tir.Schedule | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "involution2d")
        if block is None or not is_nhwc(sch, block):
            return None
        loops = sch.get_loops(block)
        extents = loop_extents(sch, loops)
        if extents is None or len(loops) != 6:
            return None
        if not schedule_producers(sch, block, target):
            return None
        epilogue = fuse_epilogue(sch, block)
        if epilogue is not None and sch.get_consumers(epilogue):
            return None
        if epilogue is None:
            epilogue = sch.cache_write(block, 0, "local")

        batch, row, column, channel, kernel_row, kernel_column = sch.get_loops(block)
        lanes = vector_bytes(target) // 4
        width = largest_divisor(extents[3] // group_count(sch, block), lanes)
        strip = largest_divisor(extents[2], _STRIP_512 if lanes == 16 else _STRIP)
        column_outer, column_inner = sch.split(column, [None, strip])
        channel_outer, lane = sch.split(channel, [None, width])
        sch.reorder(batch, row, column_outer, channel_outer, kernel_row, kernel_column, column_inner, lane)
        pixels = sch.fuse(batch, row)
        sch.parallel(pixels)
        sch.reverse_compute_at(epilogue, channel_outer)
        sch.set_scope(block, 0, "local")
        sch.unroll(kernel_column)
        sch.unroll(column_inner)
        sch.vectorize(lane)
        sch.decompose_reduction(block, kernel_row)
        if width > 1:  # else the epilogue's last loop is the one around both blocks
            sch.vectorize(sch.get_loops(epilogue)[-1])
        return sch


def is_nhwc(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> bool:
    """Return whether the involution's channels are its last axis, told from the index into x."""
    read = sch.get(block).reads[0].region[-1].min
    channel = sch.get(block).iter_vars[3].var
    return isinstance(read, tirx.Var) and read.same_as(channel)


def group_count(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> int:
    """Return the number of groups, from the shapes of x and the kernel."""
    iter_vars = sch.get(block).iter_vars
    taps = int(iter_vars[4].dom.extent) * int(iter_vars[5].dom.extent)
    kernel = [int(d) for d in sch.get(block).reads[1].source.shape]
    return kernel[3] if len(kernel) == 6 else kernel[3] // taps
