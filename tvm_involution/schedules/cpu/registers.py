# SPDX-License-Identifier: Apache-2.0
"""Sums in a CPU's vector registers: how many fit, how a row is filled up to whole tiles of them, and their steps."""

from __future__ import annotations

import tvm
from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...target import vector_registers
from ..placing import reverse_compute_at
from ..rule import unroll_and_vectorize, vectorize_last


def tile_pixels(vectors: int, target: tvm.target.Target) -> int:
    """Return of how many pixels the sums fit, so many vectors each, beside a line of weights and a broadcast value."""
    return max(1, (vector_registers(target) - vectors - 1) // vectors)


def strip_of(pixels: int, longest: int, shortest: int) -> int:
    """Return to a multiple of what to fill up a row of `pixels`: least waste first, then the longest strip.

    A row that is shorter than the shortest strip is one.
    """
    strips = range(min(longest, pixels), shortest - 1, -1)
    return min(strips, key=lambda strip: -(-pixels // strip) * strip, default=pixels)


def sum_in_registers(
    sch: s_tir.Schedule,
    block: SBlockRV,
    outermost: LoopRV,
    unrolled: list[LoopRV],
    lane: LoopRV,
    intrinsic: str | None = None,
) -> None:
    """Keep the sums of `block` in registers from before `outermost` on; `lane` becomes a vector or `intrinsic`."""
    sch.set_scope(block, 0, "local")
    for loop in unrolled:
        sch.unroll(loop)
    if intrinsic is None:
        sch.vectorize(lane)
        sch.decompose_reduction(block, outermost)
        return
    zero = sch.decompose_reduction(block, outermost)
    sch.vectorize(sch.get_loops(zero)[-1])
    sch.tensorize(lane, intrinsic)


def write_from_registers(
    sch: s_tir.Schedule, block: SBlockRV, home: LoopRV, unrolled: list[LoopRV], lane: LoopRV, lanes: int
) -> None:
    """Keep the sums of `block` in registers, and write them in `home`, vectors of so many lanes, when all are done.

    The caller decomposes the reduction last: other primitives take no block in two parts.
    """
    stored = sch.cache_write(block, 0, "global")
    reverse_compute_at(sch, stored, home)
    vectorize_last(sch, stored, lanes)
    sch.set_scope(block, 0, "local")
    unroll_and_vectorize(sch, unrolled, lane)
