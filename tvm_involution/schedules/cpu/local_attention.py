# SPDX-License-Identifier: Apache-2.0
"""Local self-attention with channels last, a row of pixels of one head at a time.

The scores of a vector of neighbouring pixels are sums of vectors: keys are laid out channel by channel for that. The
row's weights stay in the first level of cache, and its values are aggregated as in `Involution`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir, tirx

from ...target import vector_bytes, vector_registers
from ...te.blocks import Block
from ..attention_blocks import AttentionSizes, attention_sizes, find_attention
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    choose,
    default_or_space,
    divisors,
    fuse_epilogue,
    inline_into,
    largest_divisor,
    thread_choices,
)
from .elementwise import parallel_vectorize
from .involution import longest_strip


class LocalAttention(ScheduleRule):
    """Schedule the blocks of `te.local_attention2d` in NHWC, and the epilogue."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        blocks = find_attention(sch)
        sizes = None if blocks is None else attention_sizes(sch, blocks)
        if sizes is None:
            return None
        parallel, *other = thread_choices(2 * math.prod(sizes.sums))
        default = _Plan(longest_strip(target), parallel)
        plans = [default, *(replace(default, parallel=choice) for choice in other), replace(default, strip=7)]
        return default_or_space(plans, lambda plan: _schedule(func, target, sizes, plan, tunable), tunable)


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    strip: int
    """at most so many pixels in registers"""
    parallel: bool
    """run on all cores"""


def _schedule(
    func: tirx.PrimFunc, target: tvm.target.Target, sizes: AttentionSizes, plan: _Plan, tunable: bool
) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    blocks = find_attention(sch)
    assert blocks is not None
    queries, keys, relation, scores, peak, weights, total, block, out = blocks
    scored, extents = sizes
    heads, lanes = scored[1], vector_bytes(target) // 4
    head_channels = extents[3] // heads
    width = largest_divisor(head_channels, lanes)

    # keys channel by channel: a vector of channels is read, and written to as many rows
    inline_into(sch, keys)
    batch, row, channel, column = sch.get_loops(keys)
    channel, lane = sch.split(channel, [None, largest_divisor(int(scored[7]) * heads, lanes)])
    sch.reorder(batch, row, channel, column, lane)
    sch.vectorize(lane)
    if plan.parallel:
        sch.parallel(sch.fuse(batch, row))
    for producer in sch.get_producers(block):
        if sch.get(producer).name_hint in (Block.PADDED, Block.VALUES):
            inline_into(sch, producer)
            parallel_vectorize(sch, producer, target)

    epilogue = fuse_epilogue(sch, out)
    if epilogue is None:
        return None
    # aggregation
    batch, row, column, channel = sch.get_loops(out)
    strips = divisors(extents[2], plan.strip)
    strip, pixel = sch.split(column, [None, choose(sch, strips, strips[-1], tunable)])
    head, part, lane = sch.split(channel, [heads, None, width])
    sch.reorder(batch, row, head, strip, part, pixel, lane)
    task = sch.fuse(batch, row, head)
    if plan.parallel:
        sch.parallel(task)
    if epilogue is not out:
        reverse_compute_at(sch, epilogue, part)
        sch.vectorize(sch.get_loops(epilogue)[-1])
        sch.set_scope(out, 0, "local")
    sch.vectorize(lane)
    compute_at(sch, block, part)
    sch.set_scope(block, 0, "local")
    *_, pixel, lane, tap_row, tap_column = sch.get_loops(block)
    tap_row, unrolled = sch.split(tap_row, [None, choose(sch, divisors(scored[4], 8), 1, tunable)])
    sch.reorder(tap_row, unrolled, tap_column, pixel, lane)

    # scores and softmax, a vector of pixels at a time
    compute_at(sch, total, task)
    compute_at(sch, weights, task)
    *_, tile, _, _, weight_lane = sch.get_loops(weights)
    sch.vectorize(weight_lane)
    compute_at(sch, peak, tile)
    compute_at(sch, scores, tile)
    *_, score_row, score_column, score_lane = sch.get_loops(scores)
    # as many rows of taps as their sums fit the registers, beside a query and a key
    tap_rows = divisors(scored[4], max(1, (vector_registers(target) - 4) // scored[5]))
    score_rows, score_row = sch.split(score_row, [None, choose(sch, tap_rows, tap_rows[-1], tunable)])
    compute_at(sch, relation, score_rows)
    compute_at(sch, queries, tile)
    for softmax in (peak, total):
        *_, pixels, tap_u, tap_v = sch.get_loops(softmax)
        sch.reorder(tap_u, tap_v, pixels)
        sch.vectorize(pixels)
        sch.decompose_reduction(softmax, tap_u)
    *_, relation_row, relation_column, relation_lane, relation_channel = sch.get_loops(relation)
    sch.reorder(relation_channel, relation_row, relation_column, relation_lane)
    sch.unroll(relation_row)
    sch.unroll(relation_column)
    sch.vectorize(relation_lane)
    sch.decompose_reduction(relation, relation_channel)
    sch.unroll(score_row)
    sch.unroll(score_column)
    sch.vectorize(score_lane)
    for local in (relation, scores, peak, queries):
        sch.set_scope(local, 0, "local")
    for loop in (unrolled, tap_column, pixel):
        sch.unroll(loop)
    sch.vectorize(lane)
    sch.decompose_reduction(block, tap_row)
    return sch
