# SPDX-License-Identifier: Apache-2.0
"""Involution with the generation of its kernel on tensor cores (`te.spanned_involution2d_mma`).

A block of threads takes a box of pixels by some groups. Row by row of the window, its warps multiply that row's
weights, which come from the second-level cache in the order of the fragments, by the hidden channels of the box's
pixels, which stay in shared memory. The kernels of the row go to shared memory in float32, so that nobody rounds or
converts them, and each thread aggregates the row as in `Involution`. No more of the kernel exists at a time.
"""

from __future__ import annotations

import functools
import math

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...te.blocks import Block
from ...te.mma_convolution import COLUMNS, LANES, MmaFragments
from ...te.mma_spanned_involution import Slab, column_pixels, slab_of
from ..placing import compute_at
from ..rule import ScheduleRule, default_or_space, find_blocks
from ..window import Window, find_involution
from .aggregate import RowwiseAggregation, aggregate_by_rows
from .box import Box, KernelCost, boxes, copy_instructions
from .mma_intrinsics import mma_intrinsic
from .mma_product import read_mma
from .stage import copy_by_threads

_VARIANTS = 12
# shared memory's banks, of 4 bytes as a kernel's values; how many a thread reads at a time
_BANKS, _VALUE_BYTES, _VECTOR = 32, 4, 4


class TensorCoreInvolution(ScheduleRule):
    """Schedule the blocks `columns -> mma -> kernel`, `[pad_temp]` `-> involution2d -> epilogue` in NHWC."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found, products = find_involution(sch), find_blocks(sch, Block.MMA, Block.COLUMNS)
        if found is None or products is None:
            return None
        window, product = found[1], read_mma(sch.get(products[0]))
        fragments = product.fragments
        kernel_cost = functools.partial(multiplied_on_tensor_cores, fragments=fragments, chunks=product.chunks)
        plans = boxes(window, target, kernel_cost)[:_VARIANTS]
        return default_or_space(plans, lambda box: _schedule(func, window, box, fragments, tunable), tunable)


def _shares(box: Box, window: Window, slab: Slab) -> tuple[int, int, int] | None:
    """Return how a block's warps divide slabs, rows and columns; None where they get no equal shares."""
    left, found = box.warps(window) or 0, []
    for extent in (box.groups // slab.groups, box.rows, _columns(box, window)):
        found.append(math.gcd(left, extent))
        left //= found[-1]
    return (found[0], found[1], found[2]) if left == 1 else None


def _columns(box: Box, window: Window) -> int:
    """Return how many times the instruction's columns are filled by a row of the box."""
    return -(-box.strips * box.pixels // column_pixels(window.out_columns))


def multiplied_on_tensor_cores(box: Box, window: Window, fragments: MmaFragments, chunks: int) -> KernelCost | None:
    """Return what it costs to generate the kernels of a box on tensor cores and to read them there.

    None where a row of the box is not a whole number of the instruction's columns, the groups are not one of slabs, or
    warps cannot share the work.
    """
    slab, width = slab_of(window.groups, window.kernel_columns), box.strips * box.pixels
    if slab is None or box.groups % slab.groups:
        return None
    if width % column_pixels(window.out_columns) and width != window.out_columns:
        return None
    shares = _shares(box, window, slab)
    if shares is None:
        return None
    slabs, warps = box.groups // slab.groups, math.prod(shares)
    tasks = slabs * box.rows * _columns(box, window) / warps
    hidden = box.rows * _columns(box, window) * chunks * LANES * fragments.values
    taps = box.pixels * -(-window.kernel_columns // 4)
    # a task: a load and two instructions a step for each chunk; then biases, additions and stores of four sums
    task = chunks * (1 + 2 * fragments.steps) + 12
    weights = slabs * chunks * fragments.steps * LANES * fragments.weights
    # each row and column loads them again, from the first-level cache: as slow as a quarter of it from the second
    again = box.rows * _columns(box, window)
    lanes = box.threads(window) / (warps * LANES)
    return KernelCost(
        shared_bytes=_kernel_bytes(box, window) + box.row_padding(window) + hidden * window.element_bytes,
        # of a thread with work, which waits for those without
        instructions=(window.kernel_rows * (tasks * task + taps) / lanes)
        + copy_instructions(hidden, fragments.values, box.threads(window)),
        # two threads side by side read the same kernel, at once
        shared_loads=window.kernel_rows * (tasks * (chunks * fragments.lane_bytes / 4 + 4) + 2 * taps),
        global_bytes=(window.kernel_rows * weights * (3 + again) / 4 + hidden) * window.element_bytes,
    )


def _row_values(window: Window) -> int:
    """Return the values that a row of a pixel's kernel takes in shared memory."""
    return -(-window.kernel_columns // _VECTOR) * _VECTOR


def _kernel_bytes(box: Box, window: Window) -> int:
    """Return the shared memory of a row of the box's kernels, with what is left empty at most."""
    row = box.strips * box.pixels * _row_values(window) + _BANKS
    return box.groups * (box.rows * row + _BANKS) * _VALUE_BYTES


def _schedule(
    func: tirx.PrimFunc, window: Window, box: Box, fragments: MmaFragments, tunable: bool
) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.INVOLUTION)
    sch.compute_inline(Block.TAPS)
    warps = box.warps(window)
    assert warps is not None
    aggregation = aggregate_by_rows(sch, block, window, box, warps, tunable)
    if aggregation is None:
        return None
    products = _generate(sch, window, box, fragments, aggregation)
    aggregation.bind(sch, box)
    _multiply(sch, *products, fragments)
    return sch


def _generate(
    sch: s_tir.Schedule, window: Window, box: Box, fragments: MmaFragments, aggregation: RowwiseAggregation
) -> tuple[SBlockRV, LoopRV, LoopRV]:
    """Compute the kernels of a box for a row of the window into shared memory.

    Returns:
        The block of the products, its loop over chunks of the hidden channels and that over lanes.
    """
    kernel, mma, columns = (sch.get_sblock(name) for name in (Block.KERNEL, Block.MMA, Block.COLUMNS))
    slab = slab_of(window.groups, window.kernel_columns)
    assert slab is not None
    shares = _shares(box, window, slab)
    assert shares is not None
    sch.set_scope(kernel, 0, "shared")
    # before the strip of x is loaded, whose registers would otherwise be taken meanwhile
    compute_at(sch, kernel, aggregation.row, index=-2, rounded=True)  # a slab's taps are filled up
    # a pixel's row by whole vectors; image rows and groups apart by as much as others' lanes fill of the banks
    width = _row_values(window)
    sch.storage_align(kernel, 0, 5, _VECTOR, 0)
    if box.strips == 1:
        sch.storage_align(kernel, 0, 3, _BANKS, 2 * _VECTOR)
    sch.storage_align(kernel, 0, 2, _BANKS, _VECTOR if width > _VECTOR else _BANKS // 2)
    task = _to_lanes(sch, kernel, slab, shares)

    compute_at(sch, mma, task)
    sch.set_scope(mma, 0, "warp")
    threads = math.prod(shares) * LANES
    copy_by_threads(sch, columns, aggregation.box, threads, fragments.values, tests=True, lanes=LANES)
    lane, *tile, register, chunk, step, quad, element = sch.get_loops(mma)[-len(sch.get(mma).iter_vars) :]
    # an intrinsic of one step has no loop over steps
    outer, inner = ([step], []) if fragments.steps == 1 else ([], [step])
    sch.reorder(chunk, *outer, *tile, lane, register, *inner, quad, element)
    sch.unroll(chunk)
    return mma, chunk, lane


def _multiply(sch: s_tir.Schedule, mma: SBlockRV, chunk: LoopRV, lane: LoopRV, fragments: MmaFragments) -> None:
    """Make instructions of the products, after loops around them are bound: none is, whose body writes a sum twice."""
    init = sch.decompose_reduction(mma, chunk)
    init_lane, init_register = sch.get_loops(init)[-2:]
    sch.bind(init_lane, "threadIdx.x")
    sch.unroll(init_register)
    sch.tensorize(lane, mma_intrinsic(fragments, "global"))


def _to_lanes(sch: s_tir.Schedule, kernel: SBlockRV, slab: Slab, shares: tuple[int, int, int]) -> LoopRV:
    """Bind the loops of `kernel` as the lanes hold it; return the loop over a warp's tasks."""
    _, _, groups, rows, columns, pixel, taps = sch.get_loops(kernel)[-7:]
    slabs, group = sch.split(groups, [None, slab.groups])
    pair, quad = sch.split(pixel, [2, COLUMNS // 2])
    own, taps = sch.split(taps, [2, slab.taps // 2])
    halves = [sch.split(loop, [n, None]) for loop, n in zip((slabs, rows, columns), shares, strict=True)]
    warp, tasks = [half[0] for half in halves], [half[1] for half in halves]
    sch.reorder(*warp, *tasks, group, taps, quad, pair, own)
    lane, task = sch.fuse(group, taps, quad), sch.fuse(*tasks)
    sch.bind(sch.fuse(*warp), "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.unroll(pair)
    sch.unroll(own)
    sch.unroll(task)
    return task
