# SPDX-License-Identifier: Apache-2.0
"""Prefetch the next pack of a packed convolution's weights while the tiles of this one are multiplied.

A network's weights don't fit the caches: RedNet-50's 62 MB come from memory for every picture. A core multiplies with
one pack of output channels after the other, so the address of what comes next is known long before: each step of the
sum asks for the line of its own step in the next pack.
"""

from __future__ import annotations

import tvm
from tvm import tirx

from ..schedules.buffers import element_bytes, total_bytes
from ..schedules.packed_weight import PackedWeight, packed_weight
from .prefetch import LEVEL_2, LINE, Nest, moving, nests, prefetch, put_before, sums_of, turns
from .programs import rewrite_cpu_programs

# fewer weights than this stay in the caches, from the first tile on
_BYTES = 64 << 10


@tvm.transform.module_pass(opt_level=0, name="PrefetchWeights")
class PrefetchWeights:
    """Insert prefetches before the sums of `te.conv2d_packed`, `matmul_packed` and `conv2d_strassen` on CPUs."""

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """Return `mod` with every `PrimFunc` for a CPU rewritten."""
        return rewrite_cpu_programs(mod, _prefetch)


def _prefetch(func: tirx.PrimFunc) -> tirx.PrimFunc:
    found = nests(func.body)
    sums = sums_of(found)
    # what the program packs itself (`te/matmul.py`) is in the caches
    if sums is None or any(_writes(nest, sums.realize.block.reads[-1].source) for nest in found):
        return func
    serial = [i for i, loop in enumerate(sums.loops) if loop.kind == tirx.ForKind.SERIAL]
    weight = packed_weight(sums.realize.block)
    if not serial or weight.packs < 2 or total_bytes(weight.buffer) < _BYTES:
        return func
    return put_before(func, sums.loops[serial[-1]], _next_lines(sums, weight, sums.loops[serial[-1] + 1 :]))


def _writes(nest: Nest, buffer: tirx.Buffer) -> bool:
    return any(access.source.same_as(buffer) for access in nest.realize.block.writes)


def _next_lines(sums: Nest, weight: PackedWeight, inner: tuple[tirx.For, ...]) -> list[tirx.Stmt]:
    """Return the prefetches of what the loops `inner` read of the weight, a pack further on.

    Behind the last pack the addresses are of no array, which a prefetch does not mind.
    """
    point = sums.point(weight.region)[:4]
    lanes = LINE // (weight.values * element_bytes(weight.buffer))
    prefetches = []
    for pack, *rest in turns(point, inner, moving(inner, point[1:])):
        for lane in range(0, weight.lanes, max(1, lanes)):
            indices = [pack + 1, *rest, tirx.const(lane, "int64"), *([0] * (weight.values > 1))]
            prefetches.append(prefetch(weight.buffer, indices, LEVEL_2))
    return prefetches
