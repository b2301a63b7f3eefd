# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers with packed weights (`te.conv2d_packed`): a register-tiled matrix product.

A tile of rows (pixels) by packed output channels stays in vector registers over the whole sum; each step loads
one line of the packed weight and broadcasts one input value a row. Bias, ReLU and residual add run on the tile
before it leaves. The tile fills the register file: 14 rows x 2 vectors of 16 with AVX-512's 32 registers reached
the machine's peak.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from ...target import vector_bytes
from ..rule import ScheduleRule, find_block, fuse_epilogue, largest_divisor, loop_extents
from .elementwise import schedule_producers


class PackedGemm(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> conv2d -> conv2d_out -> epilogue`."""

    def apply(self, func: tirx.PrimFunc, target: tvm.target.Target) -> s_tir.Schedule | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "conv2d")
        if block is None or find_block(sch, "conv2d_out") is None:
            return None
        if not schedule_producers(sch, block, target):
            return None
        epilogue = fuse_epilogue(sch, block)
        if epilogue is None or sch.get_consumers(epilogue):
            return None

        loops = sch.get_loops(block)
        if loop_extents(sch, loops) is None:
            return None
        kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
        reduced = loops[len(spatial) :]

        packed = int(sch.get(block).reads[-1].source.shape[-1])
        lanes = largest_divisor(packed, vector_bytes(target) // 4)
        registers = 32 if vector_bytes(target) == 64 else 16
        pixels = [int(sch.get(loop).extent) for loop in spatial[:-1][-2:]]
        tile = _tile(pixels, packed // lanes, registers)
        row_outer, row_inner = [], []
        for loop, size in zip(spatial[:-1][-2:], tile.pixels, strict=True):
            outer, inner = sch.split(loop, [None, size])
            row_outer.append(outer)
            row_inner.append(inner)
        channel_outer, vector, lane = sch.split(spatial[-1], [None, tile.vectors, lanes])
        row_outer = [*spatial[:-1][:-2], *row_outer]
        outer_loops = [*row_outer, channel_outer]
        if _size(sch, block, -1) > _size(sch, block, -2):
            outer_loops = [channel_outer, *row_outer]  # read the larger operand once: the weight
        sch.reorder(*outer_loops, *reduced, *row_inner, vector, lane)
        tiles = sch.fuse(*outer_loops)
        sch.parallel(tiles)
        sch.reverse_compute_at(epilogue, tiles)
        sch.set_scope(block, 0, "local")
        for loop in (*row_inner, vector):
            sch.unroll(loop)
        sch.vectorize(lane)
        sch.decompose_reduction(block, reduced[0])
        _vectorize_epilogue(sch, epilogue, lanes)
        return sch


@dataclass(frozen=True)
class _Tile:
    """What stays in registers: `pixels` along the last one or two pixel axes, times `vectors` of channels."""

    pixels: tuple[int, ...]
    vectors: int


def _tile(extents: list[int], pack_vectors: int, registers: int) -> _Tile:
    """Choose the tile with the most multiply-adds a load, of those whose sums leave registers for the operands.

    Tiles are boxes that divide the axes: whole rows where several rows fit. (A tile of fused pixels that straddles
    two rows makes TVM compute the wrong region for the epilogue.)
    """
    best, best_score = _Tile((1,) * len(extents), 1), 0.0
    for vectors in (v for v in range(1, pack_vectors + 1) if pack_vectors % v == 0):
        limit = max(1, (registers - vectors - 1) // vectors)
        columns = largest_divisor(extents[-1], limit)
        rows = largest_divisor(extents[0], limit // columns) if len(extents) > 1 and columns == extents[-1] else 1
        score = rows * columns * vectors / (rows * columns + vectors)
        if score > best_score:
            best = _Tile((rows, columns) if len(extents) > 1 else (columns,), vectors)
            best_score = score
    return best


def _size(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV, read: int) -> int:
    return math.prod(int(d) for d in sch.get(block).reads[read].source.shape)


def _vectorize_epilogue(sch: s_tir.Schedule, epilogue: s_tir.schedule.SBlockRV, lanes: int) -> None:
    loop = sch.get_loops(epilogue)[-1]
    extent = sch.get(loop).extent
    if isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0:
        _, inner = sch.split(loop, [None, lanes])
        sch.vectorize(inner)
