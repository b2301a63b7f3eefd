# SPDX-License-Identifier: Apache-2.0
"""Pasting masks: an object a task, its columns' places found once, a row of the mask interpolated a row of pixels."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...te.blocks import Block
from ..placing import compute_at
from ..rule import ScheduleRule, find_blocks


class PasteMasks(ScheduleRule):
    """Schedule the blocks `mask_rows`, `mask_columns` and `masks` of `te.paste_masks`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_blocks(sch, Block.MASK_ROWS, Block.MASK_COLUMNS, Block.MASKS)
        if found is None:
            return None
        rows, columns, masks = found
        image, region, row, _ = sch.get_loops(masks)
        task = sch.fuse(image, region)
        sch.parallel(task)
        compute_at(sch, columns, task, preserve_unit_loops=False)
        compute_at(sch, rows, row, preserve_unit_loops=False)
        return [sch] if tunable else sch
