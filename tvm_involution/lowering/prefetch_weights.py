# SPDX-License-Identifier: Apache-2.0
"""Prefetch the next pack of a packed convolution's weights while the tiles of this one are multiplied.

A network's weights don't fit the caches: RedNet-50's 62 MB come from memory for every picture. A core multiplies with
one pack of output channels after the other, so the address of what comes next is known long before: each step of the
sum asks for the line of its own step in the next pack.
"""

from __future__ import annotations

import math

import tvm
from tvm import tirx

from ..schedules.buffers import element_bytes, total_bytes
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
    if not serial or not _is_worth_it(sums.realize.block.reads[-1].source):
        return func
    return put_before(func, sums.loops[serial[-1]], _next_lines(sums, sums.loops[serial[-1] + 1 :]))


def _writes(nest: Nest, buffer: tirx.Buffer) -> bool:
    return any(access.source.same_as(buffer) for access in nest.realize.block.writes)


def _is_worth_it(weight: tirx.Buffer) -> bool:
    return len(weight.shape) in (5, 6) and int(weight.shape[0]) > 1 and total_bytes(weight) >= _BYTES


def _next_lines(sums: Nest, inner: tuple[tirx.For, ...]) -> list[tirx.Stmt]:
    """Return the prefetches of what the loops `inner` read of the weight, a pack further on.

    The weight is (packs, kernel height, kernel width, steps, lanes[, 2]). Behind the last pack the addresses are of no
    array, which a prefetch does not mind.
    """
    region = sums.realize.block.reads[-1]
    weight = region.source
    point = sums.point(region)[:4]
    line_bytes = math.prod(int(size) for size in weight.shape[4:]) * element_bytes(weight)
    lanes = int(weight.shape[4]) * LINE // line_bytes
    prefetches = []
    for pack, *rest in turns(point, inner, moving(inner, point[1:])):
        for lane in range(0, int(weight.shape[4]), max(1, lanes)):
            indices = [pack + 1, *rest, tirx.const(lane, "int64"), *([0] * (len(weight.shape) - 5))]
            prefetches.append(prefetch(weight, indices, LEVEL_2))
    return prefetches
