# SPDX-License-Identifier: Apache-2.0
"""Local self-attention with channels last: a thread attends from a pixel, for one head.

Scores, softmax and sums stay in its registers; keys and values come as vectors of channels. The threads of a warp have
neighbouring heads and pixels, whose windows overlap: what one has read the others find in the cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV

from ...te.blocks import Block
from ..attention_blocks import attention_sizes, find_attention
from ..buffers import element_bytes
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    choose,
    default_or_space,
    divisors,
    fuse_epilogue,
    inline_into,
    largest_divisor,
)
from .limits import max_threads

_THREADS = 128
_VECTOR_BYTES = 16
# structural variants of a design space
_VARIANTS = 8
# multiply-adds of a thread up to which its loops over the window are unrolled, for the weights to have registers
_UNROLLED = 4096


class LocalAttention(ScheduleRule):
    """Schedule the blocks of `te.local_attention2d` in NHWC with a lane, and the epilogue."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        blocks = find_attention(sch)
        sizes = None if blocks is None else attention_sizes(sch, blocks)
        if sizes is None or sizes.relation[6] > 1:
            return None
        scored, extents = sizes
        heads, head_channels = scored[1], scored[7]
        value_channels = extents[3] // heads
        work = scored[4] * scored[5] * (head_channels + value_channels)
        own = largest_divisor(heads, max_threads(target))
        plans = [
            _Plan(heads, head_channels, value_channels, own, rows, columns, unrolled)
            for rows, columns in _boxes(extents[1:3], (scored[4], scored[5]), own, max_threads(target))
            for unrolled in (work <= _UNROLLED, work > _UNROLLED)
        ]
        return default_or_space(plans[:_VARIANTS], lambda plan: _schedule(func, plan, tunable), tunable)


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    heads: int
    head_channels: int
    value_channels: int
    own_heads: int
    rows: int
    columns: int
    """a block's threads: heads, by a box of pixels"""
    unrolled: bool
    """the loops over the window"""


def _boxes(size: Sequence[int], window: tuple[int, int], heads: int, limit: int) -> list[tuple[int, int]]:
    """Return rows and columns of pixels of a block, the best first: near to `_THREADS`, and seeing few pixels."""

    def cost(box: tuple[int, int]) -> tuple[float, float]:
        rows, columns = box
        seen = (rows + window[0] - 1) * (columns + window[1] - 1) / (rows * columns)
        return round(abs(math.log2(rows * columns * heads / _THREADS))), seen

    pairs = itertools.product(divisors(size[0], limit), divisors(size[1], limit))
    return sorted((box for box in pairs if math.prod(box) * heads <= limit), key=cost)


def _schedule(func: tirx.PrimFunc, plan: _Plan, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    blocks = find_attention(sch)
    assert blocks is not None
    queries, keys, relation, scores, peak, weights, total, block, out = blocks
    epilogue = fuse_epilogue(sch, out)
    if epilogue is None:
        return None
    # of what is computed: wider vectors of half types would not be what they become
    lanes = _VECTOR_BYTES // element_bytes(sch.get(relation).writes[0].source)
    for producer in sch.get_producers(block):
        if sch.get(producer).name_hint == Block.VALUES:
            inline_into(sch, producer)

    batch, row, column, channel = sch.get_loops(out)
    # parts that divide the axes: behind an uneven split TVM infers wrong regions
    row, own_row = sch.split(row, [None, plan.rows])
    column, own_column = sch.split(column, [None, plan.columns])
    head, own_head, channel = sch.split(channel, [None, plan.own_heads, plan.value_channels])
    sch.reorder(batch, row, column, head, own_row, own_column, own_head, channel)
    sch.bind(sch.fuse(batch, row, column, head), "blockIdx.x")
    thread = sch.fuse(own_row, own_column, own_head)
    sch.bind(thread, "threadIdx.x")
    if epilogue is not out:
        reverse_compute_at(sch, epilogue, thread)
    for each in (total, block, weights, peak, scores):
        compute_at(sch, each, thread)

    # along the window, for keys and values a vector of channels at a time
    *_, value, tap_row, tap_column = sch.get_loops(block)
    sch.reorder(tap_row, tap_column, value)
    window = [tap_row, tap_column]
    for producer in sch.get_producers(block):
        if sch.get(producer).name_hint in (Block.PADDED, Block.VALUES):
            compute_at(sch, producer, tap_column)
            sch.set_scope(producer, 0, "local")
            _as_vectors(sch, sch.get_loops(producer)[-1], plan.value_channels, lanes, tunable)
    *_, score_row, score_column, _ = sch.get_loops(scores)
    *_, weight_row, weight_column, _ = sch.get_loops(weights)
    compute_at(sch, relation, score_column)
    compute_at(sch, keys, sch.get_loops(relation)[-2])
    compute_at(sch, queries, thread)
    for each in (keys, queries):
        *_, channel, pixel = sch.get_loops(each)
        sch.reorder(pixel, channel)
        _as_vectors(sch, channel, plan.head_channels, lanes, tunable)
    summed = sch.get_loops(relation)[-1]
    for softmax in (peak, total):
        window += sch.get_loops(softmax)[-2:]
    for loop in (value, summed):
        sch.unroll(loop)
    if plan.unrolled:
        for loop in (*window, score_row, score_column, weight_row, weight_column):
            sch.unroll(loop)
    for each in (relation, scores, peak, weights, total, block, keys, queries, *([] if epilogue is out else [out])):
        sch.set_scope(each, 0, "local")
    for each, first in ((block, tap_row), (peak, window[2]), (total, window[4]), (relation, summed)):
        sch.decompose_reduction(each, first)
    _as_vectors(sch, sch.get_loops(epilogue)[-1], plan.value_channels, lanes, tunable)
    return sch


def _as_vectors(sch: s_tir.Schedule, channel: LoopRV, channels: int, lanes: int, tunable: bool) -> None:
    """Make vectors of an innermost loop over so many channels."""
    # CUDA has no vectors of three
    widths = [width for width in (1, 2, 4) if width <= lanes and channels % width == 0]
    _, lane = sch.split(channel, [None, choose(sch, widths, widths[-1], tunable)])
    sch.vectorize(lane)
