# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers on tensor cores (`te.conv2d_mma`), with the epilogue on the sums in registers.

A thread block owns a tile of output channels x pixels. Its weights and windows come chunk by chunk of the sum into
shared memory, by `cp.async` some chunks ahead where there is that, in the order of the fragments: 16 bytes a lane, no
bank conflict. Warps divide the tile; or, where there are too few tiles to keep the GPU busy (batch 1), they divide the
sum and add up in shared memory. A lane ends with neighbouring channels of a pixel, so what follows reads and writes
vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...te.blocks import Block
from ...te.mma_convolution import COLUMNS, LANES, ROWS, MmaFragments
from ..placing import reverse_compute_at
from ..rule import ScheduleRule, choose, default_or_space, divisors, find_blocks, fuse_epilogue
from .limits import copies_asynchronously, max_threads, registers, shared_bytes
from .mma_intrinsics import mma_intrinsic
from .mma_product import read_mma
from .pixels import flatten_pixels
from .stage import copy_ahead, copy_unrolled

_VARIANTS = 12
# of a block, of all that a target allows
_THREADS = 256
# registers of a lane that sums may take: half, the rest is fragments and addresses
_SUMS = 128
# what a lane has beside them, about
_OTHER_REGISTERS = 80
# what a multiprocessor does in a clock, about, from sm_80 to sm_90: bytes from the second-level cache and from shared
# memory, multiply-adds in each of its quarters
_L2_BYTES, _SHARED_BYTES, _MULTIPLY_ADDS = 32, 128, 256
# bytes from the second-level cache where all multiprocessors ask for them; sums from which on all have several tiles
_SHARED_L2_BYTES, _LARGE_TILE = 21, 128 * 128
# clocks until a load arrives; of a chunk that has arrived, with the barriers around it; of a block's start and end
_LOAD_CLOCKS, _CHUNK_CLOCKS, _BLOCK_CLOCKS = 800, 120, 1000
# the cards in question have 68 to 144 multiprocessors, of 64 to 228 KiB of shared memory
_MULTIPROCESSORS, _SHARED_MEMORY = 128, 100 << 10


@dataclass(frozen=True)
class _Plan:
    """A structural variant: a block's tile and how its warps divide it."""

    packs: int
    """of output channels"""
    columns: int
    """of 8 pixels"""
    warps: tuple[int, int, int]
    """along packs, columns and the sum"""
    stages: int
    """chunks under way at a time"""

    @property
    def threads(self) -> int:
        return math.prod(self.warps) * LANES


@dataclass(frozen=True)
class _Problem:
    """The program's sizes, all but the first filled up to whole packs, columns and chunks."""

    pixels: int
    packs: int
    columns: int
    chunks: int
    tiles: int
    fragments: MmaFragments


def pack_tiles(pixels: int, out_channels: int) -> int:
    """Return the tiles of 16 output channels in a pack: two, one where that leaves less empty.

    And one where there are few pixels, so that there are blocks enough.
    """
    return 1 if pixels <= 64 or -(-out_channels // 32) * 32 > 1.1 * (-(-out_channels // 16) * 16) else 2


def takes_product(pixels: int, out_channels: int, depth: int, fragments: MmaFragments) -> bool:
    """Return whether a product of so many pixels and output channels, with sums of `depth`, goes on tensor cores.

    For one pixel the schedule goes without bounds, where warps share a sum.
    """
    return out_channels > 1 and (pixels > 1 or -(-depth // fragments.chunk) % 2 == 0)


class TensorCoreGemm(ScheduleRule):
    """Schedule the blocks `im2col -> mma -> conv2d -> conv2d_out -> epilogue`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_blocks(sch, Block.MMA, Block.IM2COL, Block.CONV2D_OUT)
        if found is None:
            return None
        plans = _plans(_problem(sch, found[0]), target)[:_VARIANTS]
        return default_or_space(plans, lambda plan: _schedule(func, target, plan, tunable), tunable)


def _problem(sch: s_tir.Schedule, block: SBlockRV) -> _Problem:
    product, columns = read_mma(sch.get(block)), int(sch.get(block).iter_vars[2].dom.extent)
    output = sch.get_sblock(Block.CONV2D_OUT)
    pixels = math.prod(int(v.dom.extent) for v in sch.get(output).iter_vars[:-1])
    return _Problem(pixels, product.packs, columns, product.chunks, product.tiles, product.fragments)


def _plans(problem: _Problem, target: tvm.target.Target) -> list[_Plan]:
    """Return the plans that fit the target, those that should be fastest first."""
    stages_at_most = 4 if copies_asynchronously(target) else 1
    shared, threads = shared_bytes(target), min(max_threads(target), _THREADS)
    plans = []
    for packs in divisors(problem.packs, 8):
        for columns in divisors(problem.columns, 16):
            for warps in _divisions(problem, packs, columns):
                stages = min(stages_at_most, problem.chunks // warps[2])
                while stages > 1 and stages * sum(_copied_bytes(problem, packs, columns, warps[2])) > shared:
                    stages -= 1
                plan = _Plan(packs, columns, warps, max(1, stages))
                fits = plan.threads <= threads and _shared_bytes(problem, plan) <= shared
                if fits and plan.threads * (_sums(problem, plan) + _OTHER_REGISTERS) <= registers(target):
                    plans.append(plan)
    return sorted(plans, key=lambda plan: _clocks(problem, plan))


def _divisions(problem: _Problem, packs: int, columns: int) -> list[tuple[int, int, int]]:
    """Return how warps may divide a tile: every lane's sums in registers, every warp an equal share of the copies."""
    found = []
    for along_packs in divisors(packs, 4):
        for along_columns in divisors(columns, 8):
            parts = divisors(problem.chunks, 8) if along_packs * along_columns == 1 else [1]
            for along_sum in parts[1:] if problem.pixels == 1 else parts:
                warps = along_packs * along_columns * along_sum
                sums = (packs // along_packs) * problem.tiles * (columns // along_columns) * 4
                weights = packs * problem.tiles * problem.fragments.steps * problem.fragments.weights
                weights = weights * along_sum // problem.fragments.values
                even = weights % warps == 0 and columns * along_sum % warps == 0
                if along_sum > 1 and problem.pixels > 1:
                    even = even and 2 * packs * columns % along_sum == 0
                if sums <= _SUMS and even:
                    found.append((along_packs, along_columns, along_sum))
    return found


def _sums(problem: _Problem, plan: _Plan) -> int:
    """Return the sums that a lane keeps."""
    along_packs, along_columns, _ = plan.warps
    return plan.packs // along_packs * problem.tiles * (plan.columns // along_columns) * 4


def _copied_bytes(problem: _Problem, packs: int, columns: int, chunks: int) -> tuple[int, int]:
    """Return the shared memory that `chunks` chunks of a tile's weights and of its windows take."""
    return packs * problem.tiles * ROWS * chunks * 64, columns * COLUMNS * chunks * 64


def _shared_bytes(problem: _Problem, plan: _Plan) -> int:
    """Return the shared memory of a block, as TVM plans it."""
    along_sum = plan.warps[2]
    free = [plan.stages * size for size in _copied_bytes(problem, plan.packs, plan.columns, along_sum)]
    total = sum(free)
    if along_sum > 1:
        tile = plan.packs * problem.tiles * ROWS * plan.columns * COLUMNS * 4
        needed = [along_sum * tile, tile]  # each warp's sums, then all of them added up
        if problem.pixels == 1:
            # one pixel's sums have fused indices, for which TVM takes a power of two; and its results are there, too
            rounded = tile // plan.packs << (plan.packs - 1).bit_length()
            needed[1:] = [rounded, rounded]
        for size in needed:
            # in the place of one of the copies, where TVM's planner finds one neither too small nor far too large
            place = min((other for other in free if size <= other <= 16 * size), default=None)
            if place is None:
                total += size
            else:
                free.remove(place)
    return total


def _clocks(problem: _Problem, plan: _Plan) -> float:
    """Estimate the time of all blocks, from what a multiprocessor can load and multiply."""
    rows, pixels = plan.packs * problem.tiles * ROWS, plan.columns * COLUMNS
    blocks = (problem.packs // plan.packs) * (problem.columns // plan.columns)
    along_packs, along_columns, along_sum = plan.warps
    # blocks beside each other on a multiprocessor hide each other's waiting, not each other's work
    registers = plan.threads * (_sums(problem, plan) + _OTHER_REGISTERS)
    room = min(65536 // registers, _SHARED_MEMORY // _shared_bytes(problem, plan))
    beside = max(1, min(8, blocks // _MULTIPROCESSORS, room))
    warps = math.prod(plan.warps) * beside
    many = problem.packs * problem.tiles * ROWS * problem.columns * COLUMNS >= _MULTIPROCESSORS * _LARGE_TILE
    rate = _SHARED_L2_BYTES if many else _L2_BYTES
    fragments = (rows * along_columns + pixels * along_packs) * 64 * problem.chunks
    multiply_adds = rows * pixels * problem.fragments.chunk * problem.chunks
    chunk_moved, sums_moved = (rows + pixels) * 64 / rate, rows * pixels * 4 / rate
    moved = chunk_moved * problem.chunks + sums_moved
    busy = max(moved, fragments / _SHARED_BYTES, multiply_adds / (_MULTIPLY_ADDS * min(4, warps)))
    chunk = _LOAD_CLOCKS + _CHUNK_CLOCKS if plan.stages == 1 else max(_LOAD_CLOCKS / (plan.stages - 1), _CHUNK_CLOCKS)
    turns = -(-blocks // _MULTIPROCESSORS)
    if many:
        # turn after turn, waiting and work go on side by side: the longer of both counts
        alone = problem.chunks / along_sum * max(chunk, chunk_moved * along_sum) + sums_moved + _BLOCK_CLOCKS
        return turns * max(busy, alone / beside)
    return turns * (busy + (problem.chunks / along_sum * chunk + _BLOCK_CLOCKS) / beside)


def _schedule(func: tirx.PrimFunc, target: tvm.target.Target, plan: _Plan, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    mma, windows, sums = (sch.get_sblock(name) for name in (Block.MMA, Block.IM2COL, Block.CONV2D))
    problem = _problem(sch, mma)
    epilogue = fuse_epilogue(sch, sums)
    if epilogue is None or not flatten_pixels(sch, epilogue):
        return None
    along_packs, along_columns, along_sum = plan.warps

    lane, pack, column, tile, register, chunk, *inner = sch.get_loops(mma)
    block_pack, warp_pack, pack = sch.split(pack, [None, along_packs, plan.packs // along_packs])
    block_column, warp_column, column = sch.split(column, [None, along_columns, plan.columns // along_columns])
    chunks = choose(sch, _chunk_choices(problem, plan, target), 1, tunable)
    chunk_outer, warp_chunk, chunk = sch.split(chunk, [None, along_sum, chunks])
    outer = [block_column, block_pack, warp_pack, warp_column, warp_chunk, chunk_outer]
    sch.reorder(*outer, chunk, pack, tile, column, lane, register, *inner)
    total = None
    if along_sum > 1:
        total, mma = mma, sch.rfactor(warp_chunk, 0)
        block_column, block_pack, warp_pack, warp_column, warp_chunk, *rest = sch.get_loops(mma)
        chunk_outer, chunk, pack, tile, column, lane, *_ = rest
    block = sch.fuse(block_column, block_pack)
    warp = sch.fuse(warp_pack, warp_column, warp_chunk)
    sch.bind(block, "blockIdx.x")
    sch.bind(warp, "threadIdx.y")
    for loop in (chunk, pack, tile, column):
        sch.unroll(loop)

    weights = sch.cache_read(mma, 0, "shared")
    sch.set_scope(windows, 0, "shared")
    vectors = problem.fragments.values
    threads = {"threadIdx.y": math.prod(plan.warps), "threadIdx.x": LANES}
    copy_unrolled(sch, weights, chunk_outer, threads, vectors)
    # as many elements as surely are of one pixel
    whole = math.gcd(vectors, *(int(read.source.shape[-1]) for read in sch.get(windows).reads))
    copy_unrolled(sch, windows, chunk_outer, threads, vectors, whole if whole > 1 else vectors)
    if total is None:
        sch.set_scope(mma, 0, "warp")
        _write_from_registers(sch, sums, epilogue, warp, problem.tiles)
    else:
        partial = sch.cache_write(mma, 0, "warp")
        added, part = _add_up(sch, partial, total, block, warp)
        shared = [added]
        if problem.pixels == 1:
            shared += _write_one_pixel(sch, sums, epilogue, block)
        else:
            shared.append(_write_from_shared(sch, sums, epilogue, block, problem.tiles))
        # last: what joins behind an uneven split takes its neighbours' elements too (TVM 0.27)
        for loop in shared:
            _, mine = sch.split(loop, [None, along_sum])
            sch.bind(mine, "threadIdx.y")
        sch.decompose_reduction(total, part)
    init = sch.decompose_reduction(mma, chunk_outer)
    *_, init_lane, init_register = loops = sch.get_loops(init)
    sch.bind(init_lane, "threadIdx.x")
    for loop in (*loops[2:-2], init_register):
        sch.unroll(loop)
    sch.tensorize(lane, mma_intrinsic(problem.fragments))
    copy_ahead(sch, chunk_outer, plan.stages)
    return sch


def _write_from_registers(sch: s_tir.Schedule, sums: SBlockRV, epilogue: SBlockRV, warp: LoopRV, tiles: int) -> None:
    """Let a lane finish the neighbouring channels that it has of two pixels."""
    reverse_compute_at(sch, sums, warp)
    sch.set_scope(sums, 0, "local")
    columns, packs, lane, _ = _to_lanes(sch, sums, tiles)
    for loop in (columns, packs):
        sch.unroll(loop)
    _finish(sch, sums, epilogue, lane, tiles)


def _add_up(
    sch: s_tir.Schedule, partial: SBlockRV, total: SBlockRV, block: LoopRV, warp: LoopRV
) -> tuple[LoopRV, LoopRV]:
    """Put each warp's sums into shared memory and add them up there.

    Returns:
        The loop over the tiles to add up, for the warps to share, and that over their parts.
    """
    sch.set_scope(partial, 0, "shared")
    sch.transform_layout(partial, ("write", 0), lambda k, lane, p, b, t, r: (k, p, b, t, lane, r))
    reverse_compute_at(sch, partial, warp)
    _, _, _, lane, *tile, register = sch.get_loops(partial)
    sch.reorder(*tile, lane, register)
    sch.bind(lane, "threadIdx.x")
    sch.vectorize(register)
    for loop in tile:
        sch.unroll(loop)

    reverse_compute_at(sch, total, block)
    sch.set_scope(total, 0, "shared")
    registers = sch.cache_write(total, 0, "local")
    _, part, lane, *inner, register = sch.get_loops(total)
    sch.reorder(*inner, lane, register, part)
    tile = sch.fuse(*inner)
    sch.bind(lane, "threadIdx.x")
    reverse_compute_at(sch, registers, lane, preserve_unit_loops=False)
    return tile, part


def _write_from_shared(sch: s_tir.Schedule, sums: SBlockRV, epilogue: SBlockRV, block: LoopRV, tiles: int) -> LoopRV:
    """Finish the tile, a lane neighbouring channels of a pixel; return the loop for the warps to share."""
    reverse_compute_at(sch, sums, block)
    sch.set_scope(sums, 0, "local")
    columns, packs, lane, pixel = _to_lanes(sch, sums, tiles)
    sch.reorder(columns, packs, pixel, lane)
    tile = sch.fuse(columns, packs, pixel)
    _finish(sch, sums, epilogue, lane, tiles)
    return tile


def _write_one_pixel(sch: s_tir.Schedule, sums: SBlockRV, epilogue: SBlockRV, block: LoopRV) -> list[LoopRV]:
    """Finish the one pixel, a lane a channel; return the loops for the warps to share.

    Through shared memory: a bound on an axis of one element would be lost (TVM 0.27).
    """
    for part in (sums, epilogue):
        reverse_compute_at(sch, part, block, preserve_unit_loops=False)
    sch.set_scope(sums, 0, "shared")
    shared = []
    for part in (sums, epilogue):
        _, *loops = sch.get_loops(part)
        steps, lane = sch.split(sch.fuse(*loops), [None, LANES])
        sch.bind(lane, "threadIdx.x")
        shared.append(steps)
    return shared


def _to_lanes(sch: s_tir.Schedule, sums: SBlockRV, tiles: int) -> tuple[LoopRV, LoopRV, LoopRV, LoopRV]:
    """Split pixels x channels as the lanes hold them: columns, packs, the lane, its two pixels, then its channels."""
    pixels, channels = sch.get_loops(sums)[-2:]
    columns, quad, pair = sch.split(pixels, [None, COLUMNS // 2, 2])
    packs, row, own = sch.split(channels, [None, ROWS // 2, 2 * tiles])
    sch.reorder(columns, packs, row, quad, pair, own)
    lane = sch.fuse(row, quad)
    sch.bind(lane, "threadIdx.x")
    return columns, packs, lane, pair


def _finish(sch: s_tir.Schedule, sums: SBlockRV, epilogue: SBlockRV, lane: LoopRV, tiles: int) -> None:
    """Run the epilogue by vectors on what a lane has."""
    reverse_compute_at(sch, epilogue, lane)
    for loop in sch.get_loops(sums)[-2:]:
        if sch.get(loop).thread_binding is None:
            sch.unroll(loop)
    channels = int(sch.get(epilogue).iter_vars[-1].dom.extent)
    pixel, own = sch.get_loops(epilogue)[-2:]
    outer, inner = sch.split(own, [None, math.gcd(channels, 2 * tiles, 8)])
    sch.unroll(pixel)
    sch.unroll(outer)
    sch.vectorize(inner)


def _chunk_choices(problem: _Problem, plan: _Plan, target: tvm.target.Target) -> list[int]:
    """Return how many chunks a warp may take at a time."""
    most = shared_bytes(target) // _shared_bytes(problem, plan)
    steps = problem.chunks // plan.warps[2]
    return [n for n in divisors(steps, 4) if n == 1 or (n <= most and steps // n >= plan.stages)]
