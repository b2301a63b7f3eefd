# SPDX-License-Identifier: Apache-2.0
"""3x3 convolutions by Winograd's algorithm (`te.conv2d_winograd`), a strip of tiles at a time.

A strip's transformed input stays in the second-level cache while the packs of output channels pass by; a pack's sums
are transformed back and finished before the next pack. The products are those of `PackedGemm`: rows of tiles by vectors
of channels in registers, one product a position in the tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...te.blocks import Block
from ..packed_weight import packed_weight
from ..placing import compute_at, reverse_compute_at
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
    unroll_and_vectorize,
    vectorize_last,
)
from .registers import strip_of, tile_pixels, write_from_registers

# bytes of a strip's transformed input: half of the second-level cache of the smaller CPUs
_STRIP_BYTES = 1 << 19
# so many heights of the register tile make a design space
_VARIANTS = 3
TILE = 4
"""pixels along a tile of the output"""
_MIN_TILES, _MIN_CHANNELS = 16, 16


class Winograd(ScheduleRule):
    """Schedule the blocks of `te.conv2d_winograd` and the epilogue."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        sums = find_block(sch, Block.WINOGRAD)
        if sums is None or loop_extents(sch, sch.get_loops(sums)) is None:
            return None
        columns = int(sch.get(sch.get_loops(sums)[2]).extent)
        limit = tile_pixels(packed_weight(sch.get(sums)).vectors(target), target)
        heights = divisors(columns, limit)[: -_VARIANTS - 1 : -1]
        return default_or_space(heights, lambda rows: _schedule(func, target, rows, tunable), tunable)


def winograd_pays(out_shape: Sequence[int], in_channels: int) -> bool:
    """Return whether a 3x3 convolution to (N, OH, OW, O) should take Winograd's algorithm.

    With tiles of 4x4 outputs it takes a quarter of the products. Its weights are four times as large, so it needs
    enough tiles to use each of them often. Measured on two AVX-512 cores: 112x112, 32 to 64 channels, 0.72 ms for 2.12;
    14x14, 256 channels, 0.40 for 1.11; 7x7, 512 channels, which is below the limit, 1.33 for 1.10. Its error is five
    times that of the direct sum, about 2e-6 in float32.
    """
    batch, height, width, out_channels = out_shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return tiles >= _MIN_TILES and min(out_channels, in_channels) >= _MIN_CHANNELS


def strip_width(tiles: int, target: tvm.target.Target) -> int:
    """Return to a multiple of what to fill up a row of `tiles`: least waste first, then the fullest registers."""
    limit = tile_pixels(2, target)
    return strip_of(tiles, limit, limit // 2 + 1)


def _schedule(func: tirx.PrimFunc, target: tvm.target.Target, rows: int, tunable: bool) -> s_tir.Schedule | None:
    """Schedule with `rows` tiles in registers; None where something else than an epilogue follows."""
    sch = s_tir.Schedule(func)
    sums, tiles = sch.get_sblock(Block.WINOGRAD), sch.get_sblock(Block.WINOGRAD_OUTPUT)
    epilogue = fuse_epilogue(sch, tiles)
    if epilogue is None:
        return None
    extents = loop_extents(sch, sch.get_loops(sums))
    assert extents is not None
    batch, tile_rows, columns, n, _, _, in_channels = extents
    m = n - 2
    weight = packed_weight(sch.get(sums))
    packs, lanes = weight.packs, weight.vector(target)
    bytes_of_rows = rows * n * n * in_channels * 4
    fitting = [d for d in divisors(columns // rows, 8) if d * bytes_of_rows <= _STRIP_BYTES] or [1]
    strip = fitting[0] * rows
    shares = batch * tile_rows * (columns // strip)

    # whole tiles: the outermost loops
    b, y, z, channel = sch.get_loops(tiles)
    y, y_inner = sch.split(y, [None, m])
    z, tile, z_inner = sch.split(z, [None, choose(sch, [d * rows for d in fitting], strip, tunable), m])
    parts = choose(sch, divisors(packs, 8), balanced_parts(shares, packs, target), tunable)
    part, pack, vector, lane = sch.split(channel, [parts, None, weight.vectors(target), lanes])
    sch.reorder(b, y, z, part, pack, tile, vector, y_inner, z_inner, lane)
    task = sch.fuse(b, y, z, part)
    sch.parallel(task)
    reverse_compute_at(sch, epilogue, pack)
    vectorize_last(sch, epilogue, lanes)
    unroll_and_vectorize(sch, [y_inner, z_inner], lane)
    output_rows = sch.get_sblock(Block.WINOGRAD_OUTPUT_ROWS)
    compute_at(sch, output_rows, vector)
    _keep_in_registers(sch, output_rows)

    # the products of a pack
    compute_at(sch, sums, pack)
    _, _, b, y, z, u, v, channel, step = sch.get_loops(sums)
    z, row = sch.split(z, [None, rows])
    vector, lane = sch.split(channel, [None, lanes])
    sch.reorder(b, y, u, v, z, step, row, vector, lane)
    write_from_registers(sch, sums, z, [row, vector], lane, lanes)

    # the transformed input of a strip
    transformed = sch.get_sblock(Block.WINOGRAD_INPUT)
    compute_at(sch, transformed, task)
    *_, b, y, z, u, v, channel = sch.get_loops(transformed)
    channel, lane = sch.split(channel, [None, largest_divisor(in_channels, lanes)])
    sch.reorder(b, y, z, channel, u, v, lane)
    unroll_and_vectorize(sch, [u, v], lane)
    input_rows = sch.get_sblock(Block.WINOGRAD_ROWS)
    compute_at(sch, input_rows, channel)
    _keep_in_registers(sch, input_rows)

    sch.decompose_reduction(sums, step)
    return sch


def _keep_in_registers(sch: s_tir.Schedule, block: SBlockRV) -> None:
    """Unroll a transformation of one tile and one vector of channels."""
    sch.set_scope(block, 0, "local")
    *_, u, v, lane = sch.get_loops(block)
    unroll_and_vectorize(sch, [u, v], lane)
