# SPDX-License-Identifier: Apache-2.0
"""1x1 convolutions by a step of Strassen's algorithm (`te.conv2d_strassen`), two rows of pixels at a time.

The left factors of a tile stay in the second-level cache while the packs of output channels pass by; a pack's seven
products are added up and finished before the next pack. The products are those of `PackedGemm`: pixels by vectors of
channels in registers.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...te.blocks import Block
from ...te.strassen import paired_axis
from ..packed_weight import packed_weight
from ..placing import compute_at
from ..rule import (
    ScheduleRule,
    balanced_parts,
    choose,
    default_or_space,
    divisors,
    find_block,
    fuse_epilogue,
    largest_divisor,
    loop_extents,
    spread_over_cache,
    unroll_and_vectorize,
)
from .packed_gemm import widest_pack
from .registers import tile_pixels, write_from_registers

# sums in registers
_SUMS = 14
# so many register tiles make a design space
_VARIANTS = 4
_MIN_IN_CHANNELS, _MIN_OUT_CHANNELS = 64, 128
# weights to inputs and outputs, at most: RedNet-50's have 0.1 to 1.8 where it pays and 8 where it does not
_MAX_WEIGHTS = 2


def strassen_pays(out_shape: Sequence[int], in_channels: int, target: tvm.target.Target) -> bool:
    """Return whether a 1x1 convolution to (N, OH, OW, O) in float32 can and should take a step of Strassen's algorithm.

    It takes seven eighths of the products, but its weights are 7/4 times as large, and it adds up blocks of the input
    and of the result: so the sum and the output must be long enough, and the weights, which come from memory, not much
    larger than what they are multiplied with. docs/benchmarks.md has the gains. The error is 1.4 times that of the
    direct sum.
    """
    batch, height, width, out_channels = out_shape
    packed = in_channels % 2 == 0 and out_channels % (2 * widest_pack(target)) == 0
    if not packed or paired_axis(batch, height) is None:
        return False
    long_enough = in_channels >= _MIN_IN_CHANNELS and out_channels >= _MIN_OUT_CHANNELS
    maps = batch * height * width * (in_channels + out_channels)
    return long_enough and in_channels * out_channels <= _MAX_WEIGHTS * maps


class Strassen(ScheduleRule):
    """Schedule the blocks of `te.conv2d_strassen` and the epilogue."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        products = find_block(sch, Block.STRASSEN)
        if products is None:
            return None
        tiles = _tiles(sch, products, target)[:_VARIANTS]
        return default_or_space(tiles, lambda tile: _schedule(func, target, tile, tunable), tunable)


def _tiles(sch: s_tir.Schedule, products: SBlockRV, target: tvm.target.Target) -> list[tuple[int, int]]:
    """Return the register tiles (columns, vectors), the best first.

    Fourteen sums keep the multipliers busy; the more the tile is a square, the fewer loads they need. More columns
    would fill the registers, but the left factors of fewer stay in the first-level cache: measured, that is faster.
    """
    width = int(sch.get(sch.get_loops(products)[3]).extent)
    pack_vectors = packed_weight(sch.get(products)).vectors(target)
    tiles = [
        (columns, vectors)
        for vectors in divisors(pack_vectors, pack_vectors)
        for columns in divisors(width, tile_pixels(vectors, target))
    ]
    return sorted(tiles, key=lambda tile: (abs(tile[0] * tile[1] - _SUMS), tile[0] + tile[1]))


def _schedule(
    func: tirx.PrimFunc, target: tvm.target.Target, tile: tuple[int, int], tunable: bool
) -> s_tir.Schedule | None:
    """Schedule with a tile of columns x vectors in registers; None where something else than an epilogue follows."""
    columns, vectors = tile
    sch = s_tir.Schedule(func)
    products, out = sch.get_sblock(Block.STRASSEN), sch.get_sblock(Block.CONV2D_OUT)
    epilogue = fuse_epilogue(sch, out)
    if epilogue is None:
        return None
    if epilogue is not out:
        sch.compute_inline(out)
        out = epilogue
    extents = loop_extents(sch, sch.get_loops(products))
    assert extents is not None
    batch, rows, _, width, _, half = extents
    axis = paired_axis(*(int(d) for d in sch.get(out).writes[0].source.shape[:2]))
    weight = packed_weight(sch.get(products))
    packs, lanes = weight.packs, weight.vector(target)
    parts = choose(sch, divisors(packs, 8), balanced_parts(batch * rows * (width // columns), packs, target), tunable)

    b, y, z, channel = sch.get_loops(out)
    if axis == 1:
        y, block = sch.split(y, [None, 2])
    else:
        b, block = sch.split(b, [None, 2])
    z, column = sch.split(z, [None, columns])
    part, pack, side, vector, lane = sch.split(channel, [parts, None, 2, weight.vectors(target), lanes])
    sch.reorder(b, y, z, part, pack, column, vector, block, side, lane)
    task = sch.fuse(b, y, z, part)
    sch.parallel(task)
    unroll_and_vectorize(sch, [vector, block, side], lane)

    compute_at(sch, products, pack)
    b, y, k, z, channel, step = sch.get_loops(products)[-6:]
    vector_outer, vector, lane = sch.split(channel, [None, vectors, lanes])
    steps = choose(sch, divisors(half, 8), 1, tunable)
    step_outer, step = sch.split(step, [None, steps])
    sch.reorder(b, y, k, vector_outer, step_outer, step, z, vector, lane)
    write_from_registers(sch, products, vector_outer, [step, z, vector], lane, lanes)

    factors = sch.get_sblock(Block.STRASSEN_INPUT)
    compute_at(sch, factors, task)
    b, y, k, z, c = sch.get_loops(factors)[-5:]
    c, lane = sch.split(c, [None, largest_divisor(half, lanes)])
    sch.reorder(b, y, z, c, k, lane)
    unroll_and_vectorize(sch, [k], lane)
    spread_over_cache(sch, factors)

    sch.decompose_reduction(products, step_outer)
    return sch
