# SPDX-License-Identifier: Apache-2.0
"""How a block of threads aggregates its box; where the kernel comes from is the caller's."""

from __future__ import annotations

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..rule import choose, find_block, fuse_epilogue
from ..window import Window
from .box import Box
from .stage import as_vectors, copy_by_threads, unroll

# steps of a window's row that are unrolled
_UNROLLED = 1024


def aggregate(sch: s_tir.Schedule, block: SBlockRV, window: Window, box: Box, tunable: bool) -> LoopRV | None:
    """Schedule `[pad_temp] -> involution2d -> epilogue`, x through shared memory.

    Returns:
        The loop over boxes, under which the block's kernel must be put into shared memory; None where something else
        than elementwise operations follows.
    """
    epilogue = fuse_epilogue(sch, block)
    if epilogue is not None and sch.get_consumers(epilogue):
        return None
    if epilogue is None:
        epilogue = sch.cache_write(block, 0, "local")
    padded = find_block(sch, "pad_temp")
    x = padded or sch.cache_read(block, 0, "shared")
    strip = sch.cache_read(block, 0, "local")

    batch, row, column, channel, u, v = sch.get_loops(block)
    row, row_thread = sch.split(row, [None, box.rows])
    column, column_thread, pixel = sch.split(column, [None, box.strips, box.pixels])
    lanes = box.groups * window.group_channels // box.channels
    channel, lane, element = sch.split(channel, [None, lanes, box.channels])
    sch.reorder(batch, row, column, channel, row_thread, column_thread, lane, u, v, pixel, element)
    boxes = sch.fuse(batch, row, column, channel)
    thread = sch.fuse(row_thread, column_thread, lane)
    sch.bind(boxes, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")

    sch.reverse_compute_at(epilogue, thread, preserve_unit_loops=True)
    sch.set_scope(block, 0, "local")
    sch.compute_at(strip, u, preserve_unit_loops=True)
    copy_by_threads(sch, x, boxes, box.threads(window), box.x_vector(window), tests=padded is not None)
    unroll(sch, sch.get_loops(strip)[-2], _UNROLLED)
    as_vectors(sch, strip, box.channels)
    as_vectors(sch, epilogue, box.channels)
    unroll(sch, v, _UNROLLED)
    unroll(sch, u, choose(sch, [0, _UNROLLED], 0, tunable))
    sch.decompose_reduction(block, u)
    return boxes
