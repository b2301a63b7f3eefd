# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation, channels first: a thread owns some of a group's channels of a strip of pixels in a column.

Neighbouring threads take neighbouring columns, so each reads its kernel values itself, once for all its channels. x is
copied into shared memory with its halo, zeros around the image included; a thread reads, for each column of the window
and each channel, the pixels that its strip sees once: with 7 pixels and 7 rows 13 loads for 49 multiply-adds.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from ...te.blocks import Block
from ..placing import compute_at, reverse_compute_at
from ..rule import ScheduleRule, choose, default_or_space, divisors, find_block, fuse_or_copy, largest_divisor
from ..window import Window, find_involution, reads_kernel, window_loops
from .limits import max_threads, shared_bytes, warp_size
from .stage import TURNS, copy_by_threads, unroll

# sums that a thread keeps in registers, pixels of a strip, threads of a block, blocks that fill the largest GPUs
_SUMS, _STRIP, _THREADS, _BLOCKS = 64, 8, 256, 264
# steps of a window's column that are unrolled
_UNROLLED = 1024
# structural variants of a design space
_VARIANTS = 12


@dataclass(frozen=True)
class _Box:
    """What a block of threads takes; x is copied for all its channels."""

    strips: int
    pixels: int
    """of a strip, one above the other"""
    columns: int
    parts: int
    """of the channels, a thread each"""
    channels: int
    """of a group that a thread owns"""

    @property
    def threads(self) -> int:
        return self.strips * self.columns * self.parts

    def x_elements(self, window: Window) -> int:
        rows, columns = window.seen(self.strips * self.pixels, self.columns)
        return window.seen_planes * rows * columns * self.parts * self.channels


class InvolutionNCHW(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> involution2d -> epilogue` of an involution with channels first."""

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
        if window.channels_last or not reads_kernel(sch, block):
            return None
        boxes = _boxes(window, target)[:_VARIANTS]
        return default_or_space(boxes, lambda box: _schedule(func, window, box, tunable), tunable)


def _boxes(window: Window, target: tvm.target.Target) -> list[_Box]:
    """Return what fits the target, the best first."""
    boxes = []
    for pixels in divisors(window.out_rows, _STRIP):
        channels = largest_divisor(window.group_channels, _SUMS // pixels)
        parts = divisors(window.channels // channels, 32)
        strips, columns = divisors(window.out_rows // pixels, 8), divisors(window.out_columns, 64)
        for strip, column, part in itertools.product(strips, columns, parts):
            boxes.append(_Box(strip, pixels, column, part, channels))

    def cost(box: _Box) -> float:
        """Estimate, in an arbitrary unit: copies and loads of the sums, over what of the machine is busy."""
        outputs = box.threads * box.pixels * box.channels
        seen, _ = window.seen(box.pixels, 1)
        loads = seen / (box.pixels * window.kernel_rows) + 1 / box.channels
        full = box.threads / (-(-box.threads // warp_size(target)) * warp_size(target))
        busy = full * min(1.0, box.threads / 64) * min(1.0, window.outputs / outputs / _BLOCKS)
        serial = 1.5 if box.x_elements(window) > TURNS * box.threads else 1.0
        return (serial * box.x_elements(window) / outputs + window.taps * loads / 4) / busy

    fits = [
        box
        for box in boxes
        if box.threads <= min(max_threads(target), _THREADS)
        and box.x_elements(window) * window.element_bytes <= shared_bytes(target)
    ]
    return sorted(fits, key=cost)


def _schedule(func: tirx.PrimFunc, window: Window, box: _Box, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.INVOLUTION)
    epilogue = fuse_or_copy(sch, block)
    if epilogue is None:
        return None
    padded = find_block(sch, Block.PADDED)
    x = padded or sch.cache_read(block, 0, "shared")
    strip = sch.cache_read(block, 0, "local")

    batch, channel, (*planes, row, column), (*tap_planes, u, v) = window_loops(sch, block, window)
    channel, part, element = sch.split(channel, [None, box.parts, box.channels])
    row, row_thread, pixel = sch.split(row, [None, box.strips, box.pixels])
    column, lane = sch.split(column, [None, box.columns])
    outer, taps = [batch, *planes, row, column, channel], [*tap_planes, v]
    sch.reorder(*outer, row_thread, part, lane, *taps, element, u, pixel)
    boxes = sch.fuse(*outer)
    thread = sch.fuse(row_thread, part, lane)
    sch.bind(boxes, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    reverse_compute_at(sch, epilogue, thread)
    sch.set_scope(block, 0, "local")
    compute_at(sch, strip, element)
    copy_by_threads(sch, x, boxes, box.threads, 1, tests=padded is not None)
    unroll(sch, element, _UNROLLED)
    unroll(sch, v, choose(sch, [0, _UNROLLED], 0, tunable))
    sch.decompose_reduction(block, taps[0])
    return sch
