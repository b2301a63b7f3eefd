# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation with channels last: a strip of neighbouring pixels by one vector of a group's channels.

The strip's sums stay in registers; a row of the window loads each x vector once for all the pixels that see it,
and each kernel value is one broadcast. 49 taps of 16 channels are 49 multiply-adds of an AVX-512 register.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir, tirx

from ...target import core_count, vector_bytes, vector_registers
from ...te.blocks import Block
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    choose,
    default_or_space,
    divisors,
    find_block,
    fuse_or_copy,
    largest_divisor,
    thread_choices,
    vectorize_last,
)
from ..window import Window, find_involution, window_loops
from .elementwise import schedule_producers
from .registers import sum_in_registers

# bytes of what a task sees, at most: half of the second-level cache of many CPUs
_SEEN_BYTES = 512 << 10
# copying that many times what a task is alone in seeing costs less than all of x written to memory and read again
_COPIED = 1.5


def longest_strip(target: tvm.target.Target) -> int:
    """Return of how many pixels the sums, with the x vectors in flight, fit the registers."""
    return 14 if vector_registers(target) == 32 else 7


class Involution(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> involution2d -> epilogue` of an involution with channels last."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_involution(sch)
        if found is None or not found[1].channels_last:
            return None
        _, window = found
        group_channels = window.group_channels
        lanes = vector_bytes(target) // 4
        width = largest_divisor(group_channels, lanes)
        parallel, *other = thread_choices(window.outputs * window.taps)
        registers = vector_registers(target)
        default = _Plan(width, longest_strip(target), False, parallel)
        plans = [default, *(replace(default, parallel=choice) for choice in other)]
        if _task_rows(sch, window, target) is not None:
            plans.append(replace(default, pads_parts=False))
        # two vectors a strip share the broadcast kernel values, and halve the pixels that fit
        for vectors in (1, 2):
            for channels_first in (False, True):
                if group_channels % (width * vectors) == 0 and (vectors > 1 or channels_first):
                    plans.append(_Plan(width * vectors, (registers - 2) // vectors, channels_first, parallel))
        return default_or_space(plans, lambda plan: _schedule(func, target, window, plan, tunable), tunable)


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    width: int
    """channels in registers"""
    strip: int
    """at most so many pixels in registers"""
    channels_first: bool
    """finish a vector of channels along a row before the next"""
    parallel: bool
    """run on all cores"""
    pads_parts: bool = True
    """pad what a task sees, where that pays, and not all of x before"""


def _schedule(
    func: tirx.PrimFunc, target: tvm.target.Target, window: Window, plan: _Plan, tunable: bool
) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.INVOLUTION)
    producers = sch.get_producers(block)
    task_rows = _task_rows(sch, window, target) if plan.pads_parts else None
    if task_rows is None and not schedule_producers(sch, block, target):
        return None
    epilogue = fuse_or_copy(sch, block)
    if epilogue is None:
        return None

    batch, channel, (*rows, column), (*kernel_rows, kernel_column) = window_loops(sch, block, window)
    strips = divisors(window.out_columns, plan.strip)
    strip = choose(sch, strips, strips[-1], tunable)
    column_outer, column_inner = sch.split(column, [None, strip])
    parts = divisors(window.channels // plan.width, 8)
    part, channel_outer, lane = sch.split(channel, [choose(sch, parts, 1, tunable), None, plan.width])
    unrolled = choose(sch, divisors(window.kernel_rows, 8), 1, tunable)
    kernel_rows[-1:] = sch.split(kernel_rows[-1], [None, unrolled])
    outer = [channel_outer, column_outer] if plan.channels_first else [column_outer, channel_outer]
    if task_rows is not None:
        rows[-1], row = sch.split(rows[-1], [None, task_rows])
        outer.insert(0, row)
    sch.reorder(batch, *rows, part, *outer, *kernel_rows, kernel_column, column_inner, lane)
    task = sch.fuse(batch, *rows, part)
    if plan.parallel:
        sch.parallel(task)
    for producer in producers if task_rows is not None else ():
        compute_at(sch, producer, task)
        vectorize_last(sch, producer, vector_bytes(target) // 4)
    reverse_compute_at(sch, epilogue, outer[-1])
    sum_in_registers(sch, block, kernel_rows[0], [kernel_rows[-1], kernel_column, column_inner], lane)
    sch.vectorize(sch.get_loops(epilogue)[-1])
    return sch


def _task_rows(sch: s_tir.Schedule, window: Window, target: tvm.target.Target) -> int | None:
    """Return the rows of a task that pads what it sees; None where x is not padded, or better padded as a whole."""
    padded = find_block(sch, Block.PADDED)
    if padded is None or len(window.out_size) != 2:
        return None
    row_bytes = math.prod(int(d) for d in sch.get(padded).writes[0].source.shape[2:]) * window.element_bytes
    for rows in divisors(window.out_rows, window.out_rows)[::-1]:
        seen, _ = window.seen(rows, 1)
        tasks, cores = window.batch * window.out_rows // rows, core_count(target)
        fits = seen * row_bytes <= _SEEN_BYTES and (tasks % cores == 0 or tasks >= 8 * cores)
        if fits:
            return rows if seen <= _COPIED * rows * window.stride[0] else None
    return None
