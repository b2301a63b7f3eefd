# SPDX-License-Identifier: Apache-2.0
"""Involution with the generation of its kernel (`te.spanned_involution2d`): the kernel never leaves the multiprocessor.

A block of threads takes a box as in `Involution`, and computes its kernels into shared memory instead of copying them:
a thread multiplies a strip of pixels by a vector of neighbouring taps, its sums in registers, `hidden` and the weights
through the first-level cache. No pixel's kernel is computed twice.
"""

from __future__ import annotations

import functools

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV

from ...te.blocks import Block
from ..packed_weight import packed_weight
from ..placing import compute_at
from ..rule import ScheduleRule, default_or_space, find_blocks, largest_divisor
from ..window import Window, find_involution
from .aggregate import aggregate
from .box import Box, boxes, multiplied_kernel
from .limits import vector_bytes
from .stage import as_vectors, unroll

# steps of a vector of hidden channels that are unrolled
_UNROLLED = 512
# structural variants of a design space
_VARIANTS = 12


class SpannedInvolution(ScheduleRule):
    """Schedule the blocks `conv2d -> conv2d_out -> kernel`, `[pad_temp]` `-> involution2d -> epilogue` in NHWC."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found, generated = find_involution(sch), find_blocks(sch, Block.CONV2D, Block.CONV2D_OUT, Block.KERNEL)
        if found is None or generated is None or found[1].layout != "NHWC":
            return None
        window, weight = found[1], packed_weight(sch.get(generated[0]))
        kernel_cost = functools.partial(multiplied_kernel, hidden=weight.steps)
        plans = boxes(window, target, kernel_cost)[:_VARIANTS]
        vector = vector_bytes(target, window.dtype) // window.element_bytes
        return default_or_space(plans, lambda box: _schedule(func, window, box, vector, tunable), tunable)


def _schedule(func: tirx.PrimFunc, window: Window, box: Box, vector: int, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.INVOLUTION)
    loop = aggregate(sch, block, window, box, tunable)
    if loop is None:
        return None
    _generate(sch, window, box, loop, vector)
    return sch


def _generate(sch: s_tir.Schedule, window: Window, box: Box, loop: LoopRV, vector: int) -> None:
    """Compute the kernels of a box into shared memory."""
    span, cast, kernel = (sch.get_sblock(name) for name in (Block.CONV2D, Block.CONV2D_OUT, Block.KERNEL))
    sch.compute_inline(cast)
    pixels = sch.cache_read(span, 0, "local")
    # numbered by tap, not by pack and lane: TVM would not see that a register's number is known
    weights = sch.reindex(span, ("read", 1))
    sch.set_scope(weights, 0, "local")
    sch.set_scope(kernel, 0, "shared")
    compute_at(sch, kernel, loop)
    batch, row, column, tap = sch.get_loops(kernel)[-4:]
    column, pixel = sch.split(column, [None, box.pixels])
    lane, tap = sch.split(tap, [None, box.kernel_vector(window)])
    sch.reorder(batch, row, column, lane, pixel, tap)
    task = sch.fuse(batch, row, column, lane)

    compute_at(sch, span, task)
    sch.set_scope(span, 0, "local")
    pixel, tap, _, _, hidden = sch.get_loops(span)[-5:]
    hidden, step = sch.split(hidden, [None, largest_divisor(int(sch.get(hidden).extent), vector)])
    sch.reorder(hidden, step, pixel, tap)
    compute_at(sch, pixels, hidden)
    as_vectors(sch, pixels, int(sch.get(step).extent))
    compute_at(sch, weights, step)
    first, *rest = sch.get_loops(weights)[-len(sch.get(weights).iter_vars) :]
    sch.reorder(*rest, first)
    as_vectors(sch, weights, int(sch.get(tap).extent))
    unroll(sch, hidden, _UNROLLED)
    # split after all have joined: what joins an unevenly split loop loses its bound (TVM 0.27)
    turn, thread = sch.split(task, [None, box.threads(window)])
    sch.bind(thread, "threadIdx.x")
    # the last, partial turn apart: the others need no test
    sch.annotate(turn, "pragma_loop_partition_hint", 1)
    sch.decompose_reduction(span, hidden)
