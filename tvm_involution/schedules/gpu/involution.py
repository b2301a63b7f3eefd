# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation in NHWC: a thread owns a vector of a group's channels of a strip of pixels.

A block of threads takes a box of pixels by some groups. It copies the box of x with its halo into shared memory, zeros
around the image included, so that no load of the sum tests for the border; and the kernels of its pixels, which lie as
vectors side by side. Then a thread reads, for each row of the window, the x vectors that its strip sees once (16 bytes
each), and each kernel value once for all its channels: with 7 pixels, 8 channels and 7 columns 62 loads for 392
multiply-adds. The sums stay in registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from ..rule import ScheduleRule, choose, divisors, find_block, fuse_epilogue, is_spatial, largest_divisor
from ..window import Window, read_window
from .limits import max_threads, shared_bytes, vector_bytes, warp_size
from .stage import copy_by_threads, unroll, vectorize_last

# sums that a thread keeps in registers, pixels of a strip
_SUMS, _STRIP = 64, 8
# of the GPUs that the default is chosen for, and what they read from L2 a cycle
_MULTIPROCESSORS, _CACHE_BYTES_A_CYCLE, _SECTOR_BYTES = 132, 3000, 32
# threads of a multiprocessor that hide latencies; instructions that copy a vector to shared memory
_RESIDENT_THREADS, _COPY_INSTRUCTIONS = 256, 16
# steps of a window's row that are unrolled
_UNROLLED = 1024
# structural variants of a design space
_VARIANTS = 12


@dataclass(frozen=True)
class _Plan:
    """A structural variant: the box of a block of threads."""

    rows: int
    strips: int
    """side by side in a row"""
    pixels: int
    """of a strip"""
    groups: int
    channels: int
    """of a group that a thread owns"""
    widest: int
    """elements of the widest vector"""

    def threads(self, window: Window) -> int:
        return self.rows * self.strips * self.groups * window.group_channels // self.channels

    def kernel_elements(self, window: Window) -> int:
        return self.rows * self.strips * self.pixels * self.groups * window.taps

    def x_elements(self, window: Window) -> int:
        rows, columns = window.seen(self.rows, self.strips * self.pixels)
        return rows * columns * self.groups * window.group_channels

    def x_vector(self, window: Window) -> int:
        return largest_divisor(self.groups * window.group_channels, self.widest)

    def kernel_vector(self, window: Window) -> int:
        # the kernels of a pixel's groups lie side by side
        return math.gcd(self.groups * window.taps, self.widest)

    def shared_bytes(self, window: Window) -> int:
        return (self.kernel_elements(window) + self.x_elements(window)) * window.element_bytes


class Involution(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> involution2d -> epilogue` of an NHWC involution."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "involution2d")
        window = read_window(sch, block) if block is not None else None
        if block is None or window is None or window.layout != "NHWC":
            return None
        if not all(is_spatial(sch, producer) for producer in sch.get_producers(block)):
            return None
        plans = _plans(window, target)
        if not plans:
            return None
        default = _schedule(func, window, plans[0], tunable)
        if not tunable or default is None:
            return default
        others = (_schedule(func, window, plan, tunable) for plan in plans[1:_VARIANTS])
        return [default, *(other for other in others if other is not None)]


def _plans(window: Window, target: tvm.target.Target) -> list[_Plan]:
    """Return what fits the target, the best first."""
    widest = vector_bytes(target, window.dtype) // window.element_bytes
    vector = largest_divisor(window.group_channels, widest)
    plans = []
    for pixels in divisors(window.out_columns, min(_STRIP, max(1, _SUMS // vector))):
        for strips in divisors(window.out_columns // pixels, 16):
            for rows in divisors(window.out_rows, 16):
                for groups in divisors(window.groups, 16):
                    plan = _Plan(rows, strips, pixels, groups, vector, widest)
                    fits = plan.shared_bytes(window) <= shared_bytes(target)
                    if fits and plan.threads(window) <= min(max_threads(target), 256):
                        plans.append(plan)
    return sorted(plans, key=lambda plan: _cost(plan, window, target))


def _cost(plan: _Plan, window: Window, target: tvm.target.Target) -> float:
    """Estimate a plan's cycles: the slowest of instructions, shared and global memory, and some of the rest."""
    outputs = plan.rows * plan.strips * plan.pixels * plan.groups * window.group_channels
    blocks = window.outputs / outputs
    threads = plan.threads(window)
    warps = math.ceil(threads / warp_size(target)) * blocks
    _, seen = window.seen(1, plan.pixels)
    taps = plan.pixels * window.kernel_columns
    vector_loads, conversions = seen, (seen * plan.channels + taps) * (window.element_bytes < 4)
    instructions: float = window.kernel_rows * (taps * plan.channels + vector_loads + taps + conversions)
    copies = plan.x_elements(window) / plan.x_vector(window) + plan.kernel_elements(window) / plan.kernel_vector(window)
    instructions += _COPY_INSTRUCTIONS * copies / threads
    # a vector load of a warp takes as long as four others
    loads = window.kernel_rows * (4 * vector_loads + taps)
    resident = min(2048, 4 * shared_bytes(target) // plan.shared_bytes(window) * threads)
    issue = instructions * max(1.0, warps / (4 * _MULTIPROCESSORS)) * max(1.0, _RESIDENT_THREADS / resident)
    shared = loads * max(1.0, warps / _MULTIPROCESSORS)
    # a pixel's kernels begin and end within sectors
    sectors = plan.rows * plan.strips * plan.pixels * _SECTOR_BYTES
    elements = plan.x_elements(window) + plan.kernel_elements(window) + outputs
    bandwidth = _CACHE_BYTES_A_CYCLE * min(1.0, blocks / _MULTIPROCESSORS)
    memory = blocks * (elements * window.element_bytes + sectors) / bandwidth
    return max(issue, shared, memory) + (issue + shared + memory) / 4


def _schedule(func: tirx.PrimFunc, window: Window, plan: _Plan, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = find_block(sch, "involution2d")
    assert block is not None
    padded = sch.get_producers(block)
    epilogue = fuse_epilogue(sch, block)
    if len(padded) > 1 or (epilogue is not None and sch.get_consumers(epilogue)):
        return None
    if epilogue is None:
        epilogue = sch.cache_write(block, 0, "local")
    x = padded[0] if padded else sch.cache_read(block, 0, "shared")
    kernel = sch.cache_read(block, 1, "shared")
    strip = sch.cache_read(block, 0, "local")

    batch, row, column, channel, u, v = sch.get_loops(block)
    row, row_thread = sch.split(row, [None, plan.rows])
    column, column_thread, pixel = sch.split(column, [None, plan.strips, plan.pixels])
    lanes = plan.groups * window.group_channels // plan.channels
    channel, lane, element = sch.split(channel, [None, lanes, plan.channels])
    sch.reorder(batch, row, column, channel, row_thread, column_thread, lane, u, v, pixel, element)
    box = sch.fuse(batch, row, column, channel)
    thread = sch.fuse(row_thread, column_thread, lane)
    sch.bind(box, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")

    sch.reverse_compute_at(epilogue, thread, preserve_unit_loops=True)
    sch.set_scope(block, 0, "local")
    sch.compute_at(strip, u, preserve_unit_loops=True)
    copy_by_threads(sch, x, box, plan.threads(window), plan.x_vector(window), tests=bool(padded))
    # a kernel lies on one axis or on three
    kernel_axes = len(sch.get(kernel).writes[0].region) - 3
    copy_by_threads(sch, kernel, box, plan.threads(window), plan.kernel_vector(window), contiguous=kernel_axes)
    vectorize_last(sch, strip, plan.channels)
    vectorize_last(sch, epilogue, plan.channels)
    unroll(sch, u, choose(sch, [_UNROLLED, 0], _UNROLLED, tunable))
    sch.decompose_reduction(block, u)
    return sch
