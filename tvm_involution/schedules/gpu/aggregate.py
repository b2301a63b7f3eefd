# SPDX-License-Identifier: Apache-2.0
"""How a block of threads aggregates its box; where the kernel comes from is the caller's."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...te.blocks import Block
from ..placing import compute_at, reverse_compute_at
from ..rule import choose, find_block, fuse_or_copy
from ..window import Window, window_loops
from .box import BANK_BYTES, LANES, Box
from .stage import as_vectors, bind_threads, copy_by_threads, unroll

# steps of a window's row that are unrolled
_UNROLLED = 1024


def aggregate(sch: s_tir.Schedule, block: SBlockRV, window: Window, box: Box, tunable: bool) -> LoopRV | None:
    """Schedule `[pad_temp] -> involution2d -> epilogue`, x through shared memory.

    Returns:
        The loop over boxes, under which the block's kernel must be put into shared memory; None where something else
        than elementwise operations follows.
    """
    parts = _parts(sch, block)
    if parts is None:
        return None
    x, padded, strip, epilogue = parts

    outer, threads, taps, inner = _divide_sums(sch, block, window, box)
    *_, u, v = taps
    sch.reorder(*outer, *threads, *taps, *inner)
    boxes, thread = sch.fuse(*outer), sch.fuse(*threads)
    sch.bind(boxes, "blockIdx.x")
    bind_threads(sch, thread)

    reverse_compute_at(sch, epilogue, thread)
    sch.set_scope(block, 0, "local")
    compute_at(sch, strip, u)
    copy_by_threads(sch, x, boxes, box.threads(window), box.x_vector(window), tests=padded)
    _use_registers(sch, strip, epilogue, v, box)
    unroll(sch, u, choose(sch, [0, _UNROLLED], 0, tunable))
    sch.decompose_reduction(block, taps[0])
    return boxes


@dataclass(frozen=True)
class RowwiseAggregation:
    """An aggregation whose blocks and threads are yet to be bound."""

    outer: list[LoopRV]
    """over boxes"""
    row: LoopRV
    """of the window; under it the block's kernel must be put into shared memory"""
    threads: tuple[list[LoopRV], list[LoopRV]]
    """of the sum and of what follows"""
    tail: tuple[SBlockRV, SBlockRV, LoopRV]
    warp_rows: int

    @property
    def box(self) -> LoopRV:
        """The loop under which belongs what a block does once."""
        return self.outer[-1]

    def bind(self, sch: s_tir.Schedule, box: Box) -> None:
        """Bind blocks and threads once all has joined: what joins an unevenly split loop loses its bound (TVM 0.27)."""
        _use_registers(sch, *self.tail, box)
        # the test whether a warp's last lanes have work then stands around the sum and not in it
        whole = sch.blockize(self.tail[2])
        sch.bind(sch.fuse(*self.outer), "blockIdx.x")
        for loops in self.threads:
            _bind_warps(sch, loops, self.warp_rows)
        sch.decompose_reduction(whole, self.row)


def aggregate_by_rows(
    sch: s_tir.Schedule, block: SBlockRV, window: Window, box: Box, warps: int, tunable: bool
) -> RowwiseAggregation | None:
    """Schedule `[pad_temp] -> involution2d -> epilogue`, of two axes, with the rows of the window around the threads.

    So all warps of a block, of 32 lanes each, can make the kernels of a row before they use them.

    Returns:
        None where something else than elementwise operations follows.
    """
    parts = _parts(sch, block)
    if parts is None:
        return None
    x, padded, strip, epilogue = parts

    outer, threads, (u, v), inner = _divide_sums(sch, block, window, box)
    sch.reorder(*outer, u, *threads, v, *inner)
    unroll(sch, u, choose(sch, [0, _UNROLLED], 0, tunable))
    boxes = outer[-1]
    sch.set_scope(block, 0, "local")
    compute_at(sch, strip, threads[-1])
    reverse_compute_at(sch, epilogue, boxes)
    batch, row, column, channel = sch.get_loops(epilogue)[-4:]
    units, finishing, finished = _divide(sch, batch, [row, column], channel, window, box)
    sch.reorder(*units, *finishing, *finished)
    first = sch.fuse(*units, finishing[0])
    copy_by_threads(sch, x, boxes, warps * LANES, box.x_vector(window), tests=padded, lanes=LANES)
    if box.row_padding(window):
        # a row begins where its neighbour's first pixel ends, so that lanes of both read at once
        elements = BANK_BYTES // window.element_bytes
        sch.storage_align(x, 0, 1, elements, box.groups * window.group_channels)
    return RowwiseAggregation(outer, u, (threads, [first, *finishing[1:]]), (strip, epilogue, v), box.warp_rows(window))


def _parts(sch: s_tir.Schedule, block: SBlockRV) -> tuple[SBlockRV, bool, SBlockRV, SBlockRV] | None:
    """Return the copy of x, whether that pads it, a thread's strip of it, and what follows as one block.

    None where something else than elementwise operations follows.
    """
    epilogue = fuse_or_copy(sch, block)
    if epilogue is None:
        return None
    padded = find_block(sch, Block.PADDED)
    x = padded or sch.cache_read(block, 0, "shared")
    return x, padded is not None, sch.cache_read(block, 0, "local"), epilogue


def _divide_sums(
    sch: s_tir.Schedule, block: SBlockRV, window: Window, box: Box
) -> tuple[list[LoopRV], list[LoopRV], list[LoopRV], list[LoopRV]]:
    """Split the loops of `block`; return those over boxes, those over a box's threads, the window's, a thread's."""
    batch, channel, space, taps = window_loops(sch, block, window)
    outer, threads, inner = _divide(sch, batch, space, channel, window, box)
    return outer, threads, taps, inner


def _divide(
    sch: s_tir.Schedule, batch: LoopRV, space: list[LoopRV], channel: LoopRV, window: Window, box: Box
) -> tuple[list[LoopRV], list[LoopRV], list[LoopRV]]:
    """Split loops over the output; return those over boxes, those over a box's threads, a thread's."""
    *planes, row, column = space
    row, row_thread = sch.split(row, [None, box.rows])
    column, column_thread, pixel = sch.split(column, [None, box.strips, box.pixels])
    channel, lane, element = sch.split(channel, [None, box.lanes(window), box.channels])
    return [batch, *planes, row, column, channel], [row_thread, column_thread, lane], [pixel, element]


def _use_registers(sch: s_tir.Schedule, strip: SBlockRV, epilogue: SBlockRV, v: LoopRV, box: Box) -> None:
    """Let a thread's loops disappear, so that what it keeps has names."""
    unroll(sch, sch.get_loops(strip)[-2], _UNROLLED)
    as_vectors(sch, strip, box.channels)
    as_vectors(sch, epilogue, box.channels)
    unroll(sch, v, _UNROLLED)


def _bind_warps(sch: s_tir.Schedule, loops: list[LoopRV], rows: int) -> None:
    """Bind loops over a box's threads to warps of 32 lanes, each of `rows` whole rows, or of what comes where 0."""
    row, *others = loops
    if rows:
        # split such that the tests for lanes without work stay analyzable
        warp, row = sch.split(row, [None, rows])
        _, lane = sch.split(sch.fuse(row, *others), [None, LANES])
    else:
        warp, lane = sch.split(sch.fuse(row, *others), [None, LANES])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
