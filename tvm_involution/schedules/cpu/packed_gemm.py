# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers with packed weights (`te.conv2d_packed`): a register-tiled matrix product.

A tile of rows (pixels) by packed output channels stays in vector registers over the whole sum; each step loads
one line of the packed weight and broadcasts one input value a row. Bias, ReLU and residual add run on the tile
before it leaves. The tile fills the register file: 14 rows x 2 vectors of 16 with AVX-512's 32 registers reached
the machine's peak.

Pixels whose lines share a set of the first-level cache evict each other: 14 pixels of 1024 channels lie 4 KiB apart,
the size of a way of most CPUs, and there are 8 or 12 ways. The input of a tile is then copied first, with
another stride; all packs of output channels use the copy. With 16 registers it is always copied.

The last pack of 196 output channels is filled up, and the lanes of what leaves a tile are asked whether they are there,
those of a vector at once (`lowering/take_vectors.py`), in half types one by one. LLVM unrolls no loops of that over
more than `_ASKED` numbers, and where an index is not known the sums lie in memory: 16 to 196 channels of 64x64 took
over ten times as long.

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
from ...te.blocks import Block
from ..buffers import element_bytes
from ..packed_weight import packed_weight
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    balanced_parts,
    blocks_of,
    choose,
    default_or_space,
    divisors,
    find_block,
    find_blocks,
    fuse_epilogue,
    largest_divisor,
    loop_extents,
    loops_by_kind,
    spread_over_cache,
    take_vectors,
    thread_choices,
    vectorize_last,
)
from . import dot_bf16, dot_int8
from .dot_products import dot_product
from .elementwise import schedule_producers
from .registers import strip_of, sum_in_registers, tile_pixels

# bytes of a way of the first-level data cache, the same from Haswell to Zen 5, and how many of its ways are safe
_L1_WAY, _L1_WAYS = 4096, 8
# bytes of the second-level cache of a core, at least
_L2 = 1 << 20
# times as many weights as inputs and outputs that decide
_WEIGHTS = 2
# tiles of a group
_GROUP = 32
# numbers of a tile that leave it lane by lane, at most
_ASKED = 128
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


def widest_pack(target: tvm.target.Target) -> int:
    """Return how many output channels can lie side by side in a pack: two vectors of float32."""
    return 2 * (vector_bytes(target) // 4 if target.kind.name == "llvm" else 16)


def pack_width(target: tvm.target.Target, out_channels: int) -> int:
    """Return how many output channels, of a group where there are groups, lie side by side: two vectors, or one."""
    widest = widest_pack(target)
    return widest if out_channels % widest == 0 else widest // 2


def packed_values(target: tvm.target.Target, dtype: str) -> int:
    """Return how many input channels lie side by side, for dot products of a weight's `dtype`."""
    if dtype in ("int8", "int16"):
        dot = dot_int8.dot_int8(target, dtype)
        return dot.values if dot is not None else 1
    return 2 if dtype == "bfloat16" and dot_bf16.has_dot_bf16(target) else 1


def strip_width(pixels: int, target: tvm.target.Target) -> int:
    """Return to a multiple of what to fill up a row whose divisors leave many registers empty; 1 for none."""
    if target.kind.name != "llvm":
        return 1
    longest = tile_pixels(2, target)
    if pixels < longest or largest_divisor(pixels, longest) > longest // 2:
        return 1
    return strip_of(pixels, longest, longest // 2 + 1)


class PackedGemm(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> conv2d -> conv2d_out -> epilogue`."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_blocks(sch, Block.CONV2D, Block.CONV2D_OUT)
        if found is None or loop_extents(sch, sch.get_loops(found[0])) is None:
            return None
        plans = _plans(sch, found[0], target)[:_VARIANTS]
        return default_or_space(plans, lambda plan: _schedule(func, target, plan, tunable), tunable)


def _schedule(func: tirx.PrimFunc, target: tvm.target.Target, plan: _Plan, tunable: bool) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.CONV2D)
    if not schedule_producers(sch, block, target):
        return None
    filled_up = _is_filled_up(sch, block) and _has_masks(sch)
    epilogue = fuse_epilogue(sch, block)
    if epilogue is None:
        return None
    spatial, reduced = loops_by_kind(sch, block)
    weight = packed_weight(sch.get(block))
    lanes = weight.vector(target)
    pair = [reduced.pop()] if weight.values > 1 else []
    copy = sch.cache_read(block, 0, "global", [block]) if plan.copy_input else None

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
    outermost = reduced[0] if len(reduced) > 1 else step_outer
    dot = dot_product(weight, target)
    sum_in_registers(sch, block, outermost, [step, *row_inner, vector], lane, dot.intrinsic if dot else None)
    if dot:
        sch.annotate(task, "pragma_import_llvm", dot.llvm_function)
    if filled_up:
        _ask_vectors(sch, epilogue, home, lanes)
    else:
        vectorize_last(sch, epilogue, lanes)
    return sch


def _ask_vectors(sch: s_tir.Schedule, epilogue: SBlockRV, home: LoopRV, lanes: int) -> None:
    """Write a tile of which the last lanes may not be there; each index is known, so the sums stay in registers."""
    loops = sch.get_loops(epilogue)
    shared = next(place for place, loop in enumerate(loops, 1) if sch.get(loop).same_as(sch.get(home)))
    vector, lane = sch.split(loops[-1], [None, lanes])
    for loop in (*loops[shared:-1], vector):
        sch.unroll(loop)
    take_vectors(sch, lane, lanes)


def _plans(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target) -> list[_Plan]:
    """Return the variants, the default first.

    A tile scores by its multiply-adds a load. Its sums, one line of weights and one broadcast value must fit the
    registers. (Tiles are boxes because one of fused pixels that straddles two rows makes TVM compute the wrong region
    for the epilogue.)
    """
    spatial, _ = loops_by_kind(sch, block)
    pixels = [int(sch.get(loop).extent) for loop in spatial[:-1][-2:]]
    weight = packed_weight(sch.get(block))
    registers, pack_vectors = vector_registers(target), weight.vectors(target)
    tiles: list[tuple[float, _Plan]] = []
    channels_first = _weights_dominate(sch, block)
    grouped = len(pixels) > 1 and weight.pack_bytes > _L2
    filled_up = _is_filled_up(sch, block)
    for vectors in divisors(pack_vectors, pack_vectors):
        limit = tile_pixels(vectors, target)
        if filled_up and not _has_masks(sch):
            limit = max(1, min(limit, _ASKED // (weight.vector(target) * vectors)))
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


def _is_filled_up(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether the last pack holds output channels that there are not."""
    out = find_block(sch, Block.CONV2D_OUT)
    assert out is not None
    widths = {int(sch.get(each).writes[0].source.shape[-1]) for each in (block, out)}
    return len(widths) > 1


def _has_masks(sch: s_tir.Schedule) -> bool:
    """Return whether lanes that are not there cost nothing: whether there are no half types."""
    buffers = [region.source for block in blocks_of(sch) for region in (*sch.get(block).reads, *sch.get(block).writes)]
    return all(element_bytes(buffer) >= 4 for buffer in buffers)


def _weights_dominate(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether to divide the output channels among the cores, and not the pixels.

    All kernels of a network with large feature maps should give a core the same pixels, which its cache then has; what
    a kernel gains alone by another division the next one loses. Where a picture's maps are small, the weights are what
    should be read once.
    """
    x, weight = (read.source for read in sch.get(block).reads[-2:])
    return _elements(weight) > _WEIGHTS * (_elements(x) + _elements(sch.get(block).writes[0].source))


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


def _elements(buffer: tirx.Buffer) -> int:
    return math.prod(int(d) for d in buffer.shape)
