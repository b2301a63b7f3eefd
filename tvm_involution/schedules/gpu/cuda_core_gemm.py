# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers on CUDA cores (`te.conv2d_gemm`): sums in registers, operands in shared memory.

A thread keeps up to 8 pixels x 8 channels: for 64 multiply-adds it loads 16 values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...te.blocks import Block
from ...te.gemm_convolution import CHUNK
from ..placing import compute_at, reverse_compute_at
from ..rule import ScheduleRule, choose, default_or_space, divisors, find_block, find_blocks, fuse_epilogue
from .limits import copies_asynchronously, max_threads, shared_bytes
from .pixels import flatten_pixels
from .stage import copy_ahead, copy_unrolled

_VARIANTS = 12
# of a block, of all that a target allows
_THREADS = 256
_GROUP = 4
# what a multiprocessor does in a clock: multiply-adds, and bytes from the second-level cache
_MULTIPLY_ADDS, _L2_BYTES, _CHUNK_CLOCKS, _BLOCK_CLOCKS = 128, 32, 200, 1000
_MULTIPROCESSORS = 128


@dataclass(frozen=True)
class _Plan:
    """A structural variant: a block's tile and a thread's share of it."""

    pixels: int
    channels: int
    thread_pixels: int
    thread_groups: int
    """of four channels"""
    stages: int

    @property
    def along(self) -> tuple[int, int]:
        """Threads along pixels and channels."""
        return self.pixels // self.thread_pixels, self.channels // (self.thread_groups * _GROUP)

    @property
    def threads(self) -> int:
        return math.prod(self.along)


def pack_lanes(out_channels: int) -> int:
    """Return the output channels in a pack: 64, less where that leaves less empty."""
    return min((64, 32, 16), key=lambda lanes: (-(-out_channels // lanes) * lanes > 1.1 * out_channels, -lanes))


class CudaCoreGemm(ScheduleRule):
    """Schedule the blocks `im2col -> conv2d -> conv2d_out -> epilogue`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_blocks(sch, Block.CONV2D, Block.IM2COL)
        if found is None or find_block(sch, Block.MMA) is not None:
            return None
        plans = _plans(sch, found[0], target)[:_VARIANTS]
        return default_or_space(plans, lambda plan: _schedule(func, plan, target, tunable), tunable)


def _plans(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target) -> list[_Plan]:
    """Return the plans that fit the target, those that should be fastest first."""
    pixels, channels, chunks, _ = (int(iter_var.dom.extent) for iter_var in sch.get(block).iter_vars)
    shared, threads = shared_bytes(target), min(max_threads(target), _THREADS)
    stages = min(3 if copies_asynchronously(target) else 1, chunks)
    plans = []
    for tile_pixels in divisors(pixels, 128):
        for tile_channels in (c for c in divisors(channels, 128) if c % 16 == 0):
            for thread_pixels in divisors(tile_pixels, 8):
                for groups in (g for g in (1, 2) if tile_channels % (g * _GROUP) == 0):
                    plan = _Plan(tile_pixels, tile_channels, thread_pixels, groups, stages)
                    copied = (tile_pixels * CHUNK, tile_channels * CHUNK)
                    even = all(elements % (plan.threads * _GROUP) == 0 for elements in copied)
                    if even and 32 <= plan.threads <= threads and plan.threads % 32 == 0 and _bytes(plan) <= shared:
                        plans.append(plan)
    smallest = _Plan(1, 16, 1, 1, 1)
    return sorted(plans, key=lambda plan: _clocks(plan, pixels, channels, chunks)) or [smallest]


def _bytes(plan: _Plan) -> int:
    return plan.stages * (plan.pixels + plan.channels) * CHUNK * 4


def _clocks(plan: _Plan, pixels: int, channels: int, chunks: int) -> float:
    """Estimate the time of all blocks, from what a multiprocessor can load and multiply."""
    blocks = (pixels // plan.pixels) * (channels // plan.channels)
    beside = max(1, min(4, blocks // _MULTIPROCESSORS, 512 // plan.threads))
    rate = min(_MULTIPLY_ADDS, plan.threads * beside)
    # each step loads a thread's pixels and channels from shared memory
    a, b = plan.thread_pixels, plan.thread_groups * _GROUP
    sums = plan.pixels * plan.channels * CHUNK * chunks / rate * (1 + (a + b) / (a * b))
    moved = (plan.pixels + plan.channels) * CHUNK * 4 * chunks / _L2_BYTES
    latency = (chunks * _CHUNK_CLOCKS * (3 if plan.stages == 1 else 1) + _BLOCK_CLOCKS) / beside
    return -(-blocks // _MULTIPROCESSORS) * max(sums, moved, latency)


def _schedule(func: tirx.PrimFunc, plan: _Plan, target: tvm.target.Target, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block, windows = sch.get_sblock(Block.CONV2D), sch.get_sblock(Block.IM2COL)
    epilogue = fuse_epilogue(sch, block)
    if epilogue is None or not flatten_pixels(sch, epilogue):
        return None
    along_pixels, along_channels = plan.along

    pixel, channel, chunk, k = sch.get_loops(block)
    tile_pixel, pixel_thread, pixel = sch.split(pixel, [None, along_pixels, plan.thread_pixels])
    tile_channel, channel_thread, channel = sch.split(channel, [None, along_channels, plan.thread_groups * _GROUP])
    chunks = choose(sch, _chunk_choices(sch, block, plan, target), 1, tunable)
    outer, chunk = sch.split(chunk, [None, chunks])
    k_outer, k = sch.split(k, [None, _GROUP])
    sch.reorder(tile_pixel, tile_channel, pixel_thread, channel_thread, outer, chunk, k_outer, k, pixel, channel)
    task, thread = sch.fuse(tile_pixel, tile_channel), sch.fuse(pixel_thread, channel_thread)
    sch.bind(task, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")

    weights = sch.cache_read(block, 1, "shared")
    sch.set_scope(windows, 0, "shared")
    for operand in (0, 1):
        part = sch.cache_read(block, operand, "local")
        compute_at(sch, part, k_outer)
        # nvcc makes vectors of these; if TVM did, the shared array would be one of vectors, which cp.async cannot fill
        for loop in sch.get_loops(part)[5:]:
            sch.unroll(loop)
    for copy in (weights, windows):
        copy_unrolled(sch, copy, outer, {"threadIdx.x": plan.threads}, _GROUP)

    reverse_compute_at(sch, epilogue, thread)
    sch.set_scope(block, 0, "local")
    _write(sch, epilogue, plan)
    for loop in (chunk, k_outer, k, pixel, channel):
        sch.unroll(loop)
    init = sch.decompose_reduction(block, outer)
    for loop in sch.get_loops(init)[2:]:
        sch.unroll(loop)
    copy_ahead(sch, outer, plan.stages)
    return sch


def _chunk_choices(sch: s_tir.Schedule, block: SBlockRV, plan: _Plan, target: tvm.target.Target) -> list[int]:
    """Return how many chunks may be copied at a time."""
    shared = shared_bytes(target)
    chunks = int(sch.get(block).iter_vars[2].dom.extent)
    return [n for n in divisors(chunks, 4) if n == 1 or (n * _bytes(plan) <= shared and chunks // n >= plan.stages)]


def _write(sch: s_tir.Schedule, epilogue: SBlockRV, plan: _Plan) -> None:
    """Run the epilogue on a thread's sums, group by group."""
    loops: list[LoopRV] = sch.get_loops(epilogue)[2:]
    channels = int(sch.get(epilogue).iter_vars[-1].dom.extent)
    for loop in loops[:-1]:
        sch.unroll(loop)
    outer, inner = sch.split(loops[-1], [None, math.gcd(channels, _GROUP)])
    sch.unroll(outer)
    sch.vectorize(inner)
