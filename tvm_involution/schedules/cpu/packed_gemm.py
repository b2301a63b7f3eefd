# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers with packed weights (`te.conv2d_packed`): a register-tiled matrix product.

A tile of rows (pixels) by packed output channels stays in vector registers over the whole sum; each step loads
one line of the packed weight and broadcasts one input value a row. Bias, ReLU and residual add run on the tile
before it leaves. The tile fills the register file: 14 rows x 2 vectors of 16 with AVX-512's 32 registers reached
the machine's peak.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx

from ...target import vector_bytes
from ..rule import ScheduleRule, find_block, fuse_epilogue, is_spatial, largest_divisor, loop_extents
from .elementwise import parallel_vectorize


class PackedGemm(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> conv2d -> conv2d_out -> epilogue`."""

    def apply(self, func: tirx.PrimFunc, target: tvm.target.Target) -> s_tir.Schedule | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        block = find_block(sch, "conv2d")
        if block is None or find_block(sch, "conv2d_out") is None:
            return None
        for producer in sch.get_producers(block):
            if not is_spatial(sch, producer):
                return None
            parallel_vectorize(sch, producer, target)
        epilogue = fuse_epilogue(sch, block)
        if epilogue is None or sch.get_consumers(epilogue):
            return None

        loops = sch.get_loops(block)
        if loop_extents(sch, loops) is None:
            return None
        kinds = [iter_var.iter_type for iter_var in sch.get(block).iter_vars]
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
        reduced = loops[len(spatial) :]
        rows = sch.fuse(*spatial[:-1]) if len(spatial) > 2 else spatial[0]

        lanes = vector_bytes(target) // 4
        packed = int(sch.get(block).reads[-1].source.shape[-1])
        row_tile = _row_tile(int(sch.get(rows).extent), packed // lanes, registers=32 if lanes == 16 else 16)
        row_outer, row_inner = sch.split(rows, [None, row_tile])
        channel_outer, vector, lane = sch.split(spatial[-1], [None, packed // lanes, lanes])
        outer = (row_outer, channel_outer)
        if _weight_bytes(sch, block) > _input_bytes(sch, block):
            outer = (channel_outer, row_outer)  # read the larger operand once
        sch.reorder(*outer, *reduced, row_inner, vector, lane)
        tile = sch.fuse(*outer)
        sch.parallel(tile)
        sch.reverse_compute_at(epilogue, tile)
        sch.set_scope(block, 0, "local")
        sch.unroll(row_inner)
        sch.unroll(vector)
        sch.vectorize(lane)
        sch.decompose_reduction(block, reduced[0])
        _vectorize_epilogue(sch, epilogue, lanes)
        return sch


def _row_tile(rows: int, vectors: int, registers: int) -> int:
    """Choose the rows of a tile: the largest divisor whose sums leave room for a weight line and an input."""
    return largest_divisor(rows, max(1, (registers - vectors - 1) // vectors))


def _weight_bytes(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> int:
    return math.prod(int(d) for d in sch.get(block).reads[-1].source.shape)


def _input_bytes(sch: s_tir.Schedule, block: s_tir.schedule.SBlockRV) -> int:
    return math.prod(int(d) for d in sch.get(block).reads[-2].source.shape)


def _vectorize_epilogue(sch: s_tir.Schedule, epilogue: s_tir.schedule.SBlockRV, lanes: int) -> None:
    loop = sch.get_loops(epilogue)[-1]
    extent = sch.get(loop).extent
    if isinstance(extent, tirx.IntImm) and int(extent) % lanes == 0:
        _, inner = sch.split(loop, [None, lanes])
        sch.vectorize(inner)
