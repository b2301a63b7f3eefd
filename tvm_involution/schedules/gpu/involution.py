# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation with channels last: a thread owns a vector of a group's channels of a strip of pixels.

A block of threads takes a box of pixels by some groups. It copies the box of x with its halo into shared memory, zeros
around the image included, so that no load of the sum tests for the border; and the kernels of its pixels, which lie as
vectors side by side. Then a thread reads, for each row of the window, the x vectors that its strip sees once (16 bytes
each), and each kernel value once for all its channels: with 7 pixels, 8 channels and 7 columns 62 loads for 392
multiply-adds. The sums stay in registers.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx

from ...te.blocks import Block
from ..rule import ScheduleRule, default_or_space
from ..window import Window, find_involution, reads_kernel
from .aggregate import aggregate
from .box import Box, boxes, copied_kernel
from .stage import copy_by_threads

# structural variants of a design space
_VARIANTS = 12


class Involution(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> involution2d -> epilogue` of an involution with channels last."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_involution(sch)
        if found is None:
            return None
        block, window = found
        # a kernel that is computed here is another rule's
        if not window.channels_last or not reads_kernel(sch, block):
            return None
        plans = boxes(window, target, copied_kernel)[:_VARIANTS]
        return default_or_space(plans, lambda box: _schedule(func, window, box, tunable), tunable)


def _schedule(func: tirx.PrimFunc, window: Window, box: Box, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.INVOLUTION)
    kernel = sch.cache_read(block, 1, "shared")
    loop = aggregate(sch, block, window, box, tunable)
    if loop is None:
        return None
    # a kernel lies on one axis, or on one and those of its taps
    axes = len(sch.get(kernel).writes[0].region) - 1 - len(window.out_size)
    copy_by_threads(sch, kernel, loop, box.threads(window), box.kernel_vector(window), contiguous=axes)
    return sch
