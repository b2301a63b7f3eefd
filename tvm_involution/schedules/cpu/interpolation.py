# SPDX-License-Identifier: Apache-2.0
"""Interpolation (`te.interpolate2d`): a row of the result at a time, made of one row between, which stays in the cache.

That row is a weighted sum of rows of the input, vectors whatever the channels are. Its pixels are then weighed
channels by channels.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir

from ...target import vector_bytes
from ...te.blocks import Block
from ..placing import compute_at
from ..rule import (
    ScheduleRule,
    contiguous_axes,
    find_blocks,
    fuse_epilogue,
    loop_extents,
    take_vectors,
)

# below this many numbers, waking the other cores costs more than it saves
INTERPOLATION_GRAIN = 50_000


class Interpolation(ScheduleRule):
    """Schedule the blocks `interpolate_rows -> interpolate -> epilogue` in NHWC."""

    def apply(self, func: tvm.tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False) -> s_tir.Schedule | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_blocks(sch, Block.INTERPOLATE_ROWS, Block.INTERPOLATE)
        if tunable or found is None:
            return None
        rows, block = found
        last = fuse_epilogue(sch, block)
        if last is None or contiguous_axes(sch.get(rows)) < 2:  # channels first
            return None
        if last is not block:
            sch.compute_inline(block)
        loops = sch.get_loops(last)
        extents = loop_extents(sch, loops)
        if extents is None or len(extents) != 4 or 0 in extents:
            return None
        row = sch.fuse(*loops[:2])
        if math.prod(extents) >= INTERPOLATION_GRAIN:
            sch.parallel(row)
        compute_at(sch, rows, row)
        between = sch.fuse(*sch.get_loops(rows)[-2:])
        lanes = vector_bytes(target) // 4
        take_vectors(sch, between, lanes)
        take_vectors(sch, loops[-1], 2 * lanes)
        return sch
