# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers with packed weights (`te.conv2d_packed`): a register-tiled matrix product.

A tile of rows (pixels) by packed output channels stays in vector registers over the whole sum; each step loads
one line of the packed weight and broadcasts one input value a row. Bias, ReLU and residual add run on the tile
before it leaves. The tile fills the register file: 14 rows x 2 vectors of 16 with AVX-512's 32 registers reached
the machine's peak.

Pixels whose lines share a set of the first-level cache evict each other: 14 pixels of 1024 channels lie 4 KiB apart,
the size of a way of most CPUs, and there are 8 or 12 ways. The input of a tile is then copied first, with
another stride; all packs of output channels use the copy. With 16 registers it is always copied.

A pack's weights that are larger than the second-level cache (a 3x3 convolution of 2048 channels) come from far away for
every tile. Then a group of tiles takes turns with one pack before the next.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...target import core_count, vector_bytes, vector_registers
from ..buffers import element_bytes, total_bytes
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    balanced_parts,
    choose,
    default_or_space,
    depends,
    divisors,
    find_block,
    fuse_epilogue,
    largest_divisor,
    loop_extents,
    spread_over_cache,
    thread_choices,
    vectorize_last,
    vectorize_sums,
)
from . import dot_bf16
from .elementwise import schedule_producers

# bytes of a way of the first-level data cache, the same from Haswell to Zen 5, and how many of its ways are safe
_L1_WAY, _L1_WAYS = 4096, 8
# bytes of the second-level cache of a core, at least
_L2 = 1 << 20
# times as many weights as inputs and outputs that decide
_WEIGHTS = 2
# tiles of a group
_GROUP = 32
# this many structural variants make a design space
_VARIANTS = 12


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    pixels: tuple[int, ...]
    """of a tile, along the last one or two pixel axes; boxes that divide the axes"""
    vectors: int
    """of output channels in a tile"""
    channels_first: bool
    """walk the packs of output channels in the outer loop, which the cores share, to read the weight once"""
    copy_input: bool
    """copy a tile's input with a stride that spreads over the cache"""
    parallel: bool = True
    """run on all cores"""
    grouped: bool = False
    """have a group of tiles share each pack of weights"""


class PackedGemm(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> conv2d -> conv2d_out -> epilogue`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "conv2d")
        if block is None or find_block(sch, "conv2d_out") is None or loop_extents(sch, sch.get_loops(block)) is None:
            return None
        plans = _plans(sch, block, target)[:_VARIANTS]
        return default_or_space(plans, lambda plan: _schedule(func, target, plan, tunable), tunable)


def _schedule(func: tirx.PrimFunc, target: tvm.target.Target, plan: _Plan, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = find_block(sch, "conv2d")
    assert block is not None
    if not schedule_producers(sch, block, target):
        return None
    epilogue = fuse_epilogue(sch, block)
    if epilogue is None:
        return None
    spatial, reduced = _split_kinds(sch, block)
    lanes = largest_divisor(pack_width(sch, block), vector_bytes(target) // 4)
    paired = is_paired(sch, block)
    pair = [reduced.pop()] if paired else []
    copy = sch.cache_read(block, 0, "global") if plan.copy_input else None

    batch, pixels = spatial[:-1][:-2], spatial[:-1][-2:]
    row_outer, row_inner = [], []
    for loop, size in zip(pixels, plan.pixels, strict=True):
        outer, inner = sch.split(loop, [None, size])
        row_outer.append(outer)
        row_inner.append(inner)
    tiles = [*batch, *row_outer]
    channels = int(sch.get(spatial[-1]).extent) // (plan.vectors * lanes)
    shares = math.prod(loop_extents(sch, tiles) or [1])
    even = balanced_parts(shares, channels, target) if copy is not None else 1
    parts = choose(sch, divisors(channels, 8), even, tunable)
    part, channel_outer, vector, lane = sch.split(spatial[-1], [parts, None, plan.vectors, lanes])
    steps = choose(sch, divisors(int(sch.get(reduced[-1]).extent), 8), 1, tunable)
    step_outer, step = sch.split(reduced[-1], [None, steps])
    sums = [*reduced[:-1], step_outer, step, *row_inner, vector, lane, *pair]
    if copy is not None:
        sch.reorder(*tiles, part, channel_outer, *sums)
        task = sch.fuse(*tiles, part)
        compute_at(sch, copy, task)
        spread_over_cache(sch, copy)
        vectorize_last(sch, copy, lanes)
        home = channel_outer
    elif plan.grouped:
        count = math.prod(loop_extents(sch, tiles) or [1])
        size = largest_divisor(count, max(1, min(_GROUP, count // core_count(target))))
        sch.reorder(*tiles, part, channel_outer, *sums)
        group, home = sch.split(sch.fuse(*tiles), [None, size])
        sch.reorder(group, part, channel_outer, home)
        task = sch.fuse(group, part)
    else:
        outer = [part, channel_outer, *tiles] if plan.channels_first else [*tiles, part, channel_outer]
        sch.reorder(*outer, *sums)
        home = task = sch.fuse(*outer)
    if plan.parallel:
        sch.parallel(task)
    reverse_compute_at(sch, epilogue, home)
    sch.set_scope(block, 0, "local")
    for loop in (step, *row_inner, vector):
        sch.unroll(loop)
    outermost = reduced[0] if len(reduced) > 1 else step_outer
    vectorize_sums(sch, block, outermost, lane, dot_bf16.INTRINSIC if paired else None)
    if paired:
        sch.annotate(task, "pragma_import_llvm", dot_bf16.LLVM_FUNCTION)
    vectorize_last(sch, epilogue, lanes)
    return sch


def _split_kinds(sch: s_tir.Schedule, block: SBlockRV) -> tuple[list[LoopRV], list[LoopRV]]:
    loops = sch.get_loops(block)
    count = sum(iter_var.iter_type == tirx.IterVar.DataPar for iter_var in sch.get(block).iter_vars)
    return loops[:count], loops[count:]


def _plans(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target) -> list[_Plan]:
    """Return the variants, the default first.

    A tile scores by its multiply-adds a load. Its sums, one line of weights and one broadcast value must fit the
    registers. (Tiles are boxes because one of fused pixels that straddles two rows makes TVM compute the wrong region
    for the epilogue.)
    """
    spatial, _ = _split_kinds(sch, block)
    pixels = [int(sch.get(loop).extent) for loop in spatial[:-1][-2:]]
    packed = pack_width(sch, block)
    registers = vector_registers(target)
    pack_vectors = packed // largest_divisor(packed, vector_bytes(target) // 4)
    tiles: list[tuple[float, _Plan]] = []
    channels_first = _weights_dominate(sch, block)
    grouped = len(pixels) > 1 and _pack_bytes(sch, block) > _L2
    for vectors in divisors(pack_vectors, pack_vectors):
        limit = max(1, (registers - vectors - 1) // vectors)
        for columns in divisors(pixels[-1], limit):
            # whole rows where several rows fit
            several = len(pixels) > 1 and columns == pixels[-1]
            for rows in divisors(pixels[0], limit // columns) if several else [1]:
                score = rows * columns * vectors / (rows * columns + vectors)
                shape = (rows, columns) if len(pixels) > 1 else (columns,)
                # small tiles do little with a line of input: measured with AVX2, the copy nearly always pays
                copy = len(pixels) > 1 and (registers < 32 or _thrashes(sch, block, rows * columns))
                copy, first = copy and not grouped, channels_first and not (copy or grouped)
                tiles.append((score, _Plan(shape, vectors, first, copy, grouped=grouped)))
    loops = loop_extents(sch, sch.get_loops(block))
    assert loops is not None
    parallel, *other = thread_choices(math.prod(loops))
    ranked = [replace(plan, parallel=parallel) for _, plan in sorted(tiles, key=lambda tile: -tile[0])]
    best = ranked[: max(1, _VARIANTS // 3)]
    plans = [*best, *(replace(best[0], parallel=choice) for choice in other)]
    for plan in best:
        if len(pixels) > 1:
            plans.append(replace(plan, copy_input=not plan.copy_input, channels_first=False, grouped=False))
    return plans


def _weights_dominate(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether to divide the output channels among the cores, and not the pixels.

    All kernels of a network with large feature maps should give a core the same pixels, which its cache then has; what
    a kernel gains alone by another division the next one loses. Where a picture's maps are small, the weights are what
    should be read once.
    """
    maps = _elements(sch, block, -2) + math.prod(int(d) for d in sch.get(block).writes[0].source.shape)
    return _elements(sch, block, -1) > _WEIGHTS * maps


def _thrashes(sch: s_tir.Schedule, block: SBlockRV, pixels: int) -> bool:
    """Return whether the lines of a tile's `pixels` fall on too few sets of the first-level cache."""
    region = sch.get(block).reads[0]
    *_, height, width = (1, *(int(d) for d in region.source.shape[1:-1]))
    channels = int(region.source.shape[-1])
    out_width = int(sch.get(block).writes[0].source.shape[-2])
    stride = max(1, width // out_width) if height > 1 or width > 1 else 1
    distance = channels * stride * element_bytes(region.source)
    sets = _L1_WAY // math.gcd(_L1_WAY, distance)
    return pixels > sets * (_L1_WAYS - 1)


def _pack_bytes(sch: s_tir.Schedule, block: SBlockRV) -> int:
    """Return the size of the weights of one pack of output channels."""
    weight = sch.get(block).reads[-1].source
    # a computed weight has the axes of the batch before
    return total_bytes(weight) // math.prod(int(d) for d in weight.shape[: max(1, len(weight.shape) - 4)])


def pack_width(sch: s_tir.Schedule, block: SBlockRV) -> int:
    """Return how many output channels lie side by side in the packed weight."""
    weight = sch.get(block).reads[-1].source
    return int(weight.shape[-1 if not is_paired(sch, block) else -2])


def is_paired(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether two input channels lie side by side in the packed weight, for dot products."""
    sums = [axis for axis in sch.get(block).iter_vars if axis.iter_type != tirx.IterVar.DataPar]
    weight = sch.get(block).reads[-1].region
    return len(weight) == 6 and any(depends(weight[-1].min, axis.var) for axis in sums)


def _elements(sch: s_tir.Schedule, block: SBlockRV, read: int) -> int:
    return math.prod(int(d) for d in sch.get(block).reads[read].source.shape)
