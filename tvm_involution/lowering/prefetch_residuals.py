# SPDX-License-Identifier: Apache-2.0
"""Prefetch what a convolution adds to a tile of its sums, the residual, before the tile is multiplied.

The third convolution of a bottleneck reads its residual a tile at a time: a few lines of each pixel, 512 bytes and more
apart, which no hardware foresees. They come from the last cache or from the other core's while the tile is multiplied.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx
from tvm_ffi import structural_equal

from ..schedules.buffers import element_bytes, total_bytes
from .prefetch import LEVEL_1, LINE, Nest, moving, nests, prefetch, put_before, sums_of, turns
from .programs import rewrite_cpu_programs

# smaller residuals stay in the caches
_BYTES = 64 << 10
# a tile whose residual has more lines keeps the loads busy without being asked
_LINES = 64


@tvm.transform.module_pass(opt_level=0, name="PrefetchResiduals")
class PrefetchResiduals:
    """Insert prefetches before the tiles of convolutions whose epilogue reads a tensor as large as their result."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, _prefetch)


def _prefetch(func: tirx.PrimFunc) -> tirx.PrimFunc:
    found = nests(func.body)
    sums = sums_of(found)
    if sums is None or found[-1] is sums:
        return func
    epilogue = found[-1]
    shared = [loop for loop, other in zip(sums.loops, epilogue.loops, strict=False) if loop.same_as(other)]
    lines = [line for residual in _residuals(epilogue) for line in _lines(epilogue, residual, len(shared))]
    if not shared or not 0 < len(lines) <= _LINES:
        return func
    return put_before(func, shared[-1], lines)


def _residuals(epilogue: Nest) -> list[tirx.BufferRegion]:
    """Return the regions in memory that are read element by element as the result is written."""
    block = epilogue.realize.block
    (result,) = block.writes
    return [
        read
        for read in block.reads
        if read.source.scope() == "global"
        and structural_equal(read.source.shape, result.source.shape)
        and structural_equal(read.region, result.region)
        and total_bytes(read.source) >= _BYTES
    ]


def _lines(epilogue: Nest, residual: tirx.BufferRegion, shared: int) -> list[tirx.Stmt]:
    """Return the prefetches of what the loops behind the first `shared` read."""
    inner, point = epilogue.loops[shared:], epilogue.point(residual)
    pixels = moving(inner, point[:-1])
    channels = math.prod(int(loop.extent) for loop in inner if loop not in pixels)
    return [
        prefetch(residual.source, [*pixel, channel + behind], LEVEL_1)
        for *pixel, channel in turns(point, inner, pixels)
        for behind in range(0, channels, LINE // element_bytes(residual.source))
    ]
