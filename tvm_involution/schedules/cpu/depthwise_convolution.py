# SPDX-License-Identifier: Apache-2.0
"""Depthwise convolutions in NHWC (`te.depthwise_conv2d`): a strip of pixels by a vector of channels in registers.

A row of the window loads each x vector once for all the pixels of the strip that see it. What a block of rows and
channels sees, padding included, is copied first: it stays in the cache, and costs less than a pass over all of x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir

from ...target import vector_bytes, vector_registers
from ...te.blocks import Block
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    choose,
    default_or_space,
    divisors,
    find_block,
    fuse_epilogue,
    is_spatial,
    largest_divisor,
    thread_choices,
    vectorize_last,
)
from ..window import Window, read_window
from .registers import strip_of, sum_in_registers

# bytes of what a task sees, at most: half of the second-level cache of the smaller CPUs
_SEEN_BYTES = 256 << 10
# copying that many times what a task is alone in seeing costs little
_COPIED = 1.3
# vectors of channels of a task, which lie beside each other in memory
_VECTORS = 4


def strip_width(columns: int, target: tvm.target.Target) -> int:
    """Return how many pixels of a row to take together: least waste first, then the most that fit the registers."""
    limit = _longest_strip(target)
    return strip_of(columns, limit, limit // 2)


def _longest_strip(target: tvm.target.Target) -> int:
    """Return of how many pixels the sums, with as many x vectors in flight, fit the registers."""
    return vector_registers(target) // 2 - 2


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    strip: int
    parallel: bool


class DepthwiseConvolution(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> depthwise_conv2d -> depthwise_conv2d_out -> epilogue`."""

    def apply(
        self, func: tvm.tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, Block.DEPTHWISE)
        window = None if block is None else read_window(sch, block)
        if window is None:
            return None
        strips = divisors(window.out_columns, _longest_strip(target))[::-1]
        parallel, *other = thread_choices(window.outputs * window.taps)
        plans = [_Plan(strip, parallel) for strip in strips[:3]]
        plans += [replace(plans[0], parallel=choice) for choice in other]
        return default_or_space(plans, lambda plan: _schedule(func, target, window, plan, tunable), tunable)


def _schedule(
    func: tvm.tirx.PrimFunc, target: tvm.target.Target, window: Window, plan: _Plan, tunable: bool
) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.DEPTHWISE)
    epilogue = fuse_epilogue(sch, block)
    producers = sch.get_producers(block)
    if epilogue is None or not all(is_spatial(sch, producer) for producer in producers):
        return None
    lanes = largest_divisor(window.channels, vector_bytes(target) // 4)
    vectors, rows = _block(window, int(sch.get(block).reads[0].source.shape[2]), lanes)
    batch, row, column, channel, kernel_row, kernel_column = sch.get_loops(block)
    task_rows, row = sch.split(row, [None, choose(sch, divisors(window.out_rows, rows), rows, tunable)])
    column, pixel = sch.split(column, [None, plan.strip])
    task_channels, vector, lane = sch.split(channel, [None, vectors, lanes])
    sch.reorder(batch, task_rows, task_channels, row, column, vector, kernel_row, kernel_column, pixel, lane)
    task = sch.fuse(batch, task_rows, task_channels)
    if plan.parallel:
        sch.parallel(task)
    for producer in producers:
        compute_at(sch, producer, task)
        vectorize_last(sch, producer, lanes)
    reverse_compute_at(sch, epilogue, vector)
    sum_in_registers(sch, block, kernel_row, [kernel_column, pixel], lane)
    vectorize_last(sch, epilogue, lanes)
    return sch


def _block(window: Window, width: int, lanes: int) -> tuple[int, int]:
    """Return the vectors of channels and the rows of a task: many, and little that two tasks both copy.

    Args:
        width: pixels of a row of x, with its padding.
    """
    best = (math.inf, 1, 1)
    for vectors in divisors(window.channels // lanes, _VECTORS)[::-1]:
        for rows in divisors(window.out_rows, window.out_rows):
            seen, _ = window.seen(rows, 1)
            if rows == 1 or seen * width * window.element_bytes * vectors * lanes <= _SEEN_BYTES:
                copied = max(_COPIED, seen / (rows * window.stride[0]))
                best = min(best, (copied, vectors, rows), key=lambda found: found[0])
    return best[1:]
