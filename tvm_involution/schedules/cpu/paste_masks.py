# SPDX-License-Identifier: Apache-2.0
"""Pasting masks: an object a task, its columns' places found once, a row of the mask interpolated a row of pixels."""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ..placing import compute_at
from ..rule import ScheduleRule, find_block


class PasteMasks(ScheduleRule):
    """Schedule the blocks `mask_rows`, `mask_columns` and `masks` of `te.paste_masks`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        rows, columns, masks = (find_block(sch, name) for name in ("mask_rows", "mask_columns", "masks"))
        if rows is None or columns is None or masks is None:
            return None
        image, region, row, _ = sch.get_loops(masks)
        task = sch.fuse(image, region)
        sch.parallel(task)
        compute_at(sch, columns, task, preserve_unit_loops=False)
        compute_at(sch, rows, row, preserve_unit_loops=False)
        return [sch] if tunable else sch
