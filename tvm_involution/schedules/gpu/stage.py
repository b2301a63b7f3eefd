# SPDX-License-Identifier: Apache-2.0
"""Copies by vectors, and into shared memory by all threads of a block."""

from __future__ import annotations

from collections.abc import Mapping

import tvm
from tvm import s_tir
from tvm.s_tir.schedule import ExprRV, LoopRV, SBlockRV

from ..placing import compute_at
from ..rule import vectorize_last

VECTORS = (2, 4, 8)
"""elements of those that TVM's CUDA code generator has types for"""
TURNS = 96
"""vectors that a thread copies at most in one go, its loads all under way"""
STAGED_BYTES = 384
"""of a thread's vectors that may wait in registers"""


def copy_by_threads(
    sch: s_tir.Schedule,
    block: SBlockRV,
    box: LoopRV,
    threads: int,
    vector: int,
    *,
    contiguous: int = 1,
    tests: bool = False,
    lanes: int | None = None,
) -> None:
    """Compute `block` into shared memory in loop `box`, each thread a vector of neighbouring elements at a time.

    A thread's loads should all be under way before it waits for the first.

    Args:
        vector: elements of a vector; divides the part of the last `contiguous` axes that the box needs.
        tests: whether each load stands behind a test for the border. The CUDA compiler then keeps loads and stores in
            order, unless the loads go to registers first.
        lanes: see `bind_threads`.
    """
    sch.set_scope(block, 0, "shared")
    compute_at(sch, block, box)
    depth = [sch.get(loop) for loop in sch.get_loops(block)].index(sch.get(box)) + 1
    loops = sch.get_loops(block)[depth:]
    # apart from the lanes, so that a test for the border does not depend on them
    last, lane = sch.split(sch.fuse(*loops[-contiguous:]), [None, vector])
    turn, thread = sch.split(sch.fuse(*loops[:-contiguous], last), [None, threads])
    bind_threads(sch, thread, lanes)
    if vector in VECTORS:
        sch.vectorize(lane)
    unroll(sch, turn, TURNS)
    element_bits = tvm.DataType(str(sch.get(block).writes[0].source.dtype)).bits
    turns = int(sch.get(turn).extent)
    if not tests:
        # the last, partial turn apart: the others need no test
        sch.annotate(turn, "pragma_loop_partition_hint", 1)
    elif turns <= TURNS and turns * vector * element_bits // 8 <= STAGED_BYTES:
        # only loops that are unrolled can index registers
        sch.annotate(block, "tirx.manifest_shared_memory_local_stage", 1)


def copy_unrolled(
    sch: s_tir.Schedule,
    block: SBlockRV,
    loop: LoopRV,
    threads: Mapping[str, int],
    vector: int,
    whole: int | None = None,
) -> None:
    """Compute `block` in `loop`, third of its loops, by all `threads` (by tag), an even number of vectors each.

    Args:
        whole: elements of a vector that are copied at once, where not all of them lie side by side.
    """
    compute_at(sch, block, loop)
    _, _, _, *loops = sch.get_loops(block)
    steps, *shared, lane = sch.split(sch.fuse(*loops), [None, *threads.values(), vector])
    for part, tag in zip(shared, threads, strict=True):
        sch.bind(part, tag)
    if whole is not None and whole < vector:
        parts, lane = sch.split(lane, [None, whole])
        sch.unroll(parts)
    sch.vectorize(lane)
    sch.unroll(steps)


def copy_ahead(sch: s_tir.Schedule, loop: LoopRV, stages: int) -> None:
    """Have the two copies of a loop's turn under way before the turn that uses them, where there are `stages`."""
    if stages > 1:
        sch.annotate(loop, "software_pipeline_stage", [0, 0, stages - 1])
        sch.annotate(loop, "software_pipeline_order", [0, 1, 2])
        sch.annotate(loop, "software_pipeline_async_stages", [0])


def bind_threads(sch: s_tir.Schedule, thread: LoopRV, lanes: int | None = None) -> None:
    """Bind a loop over a block's threads to threadIdx.x; or, with `lanes`, to warps of so many (threadIdx.y, x)."""
    if lanes is not None:
        warp, thread = sch.split(thread, [None, lanes])
        sch.bind(warp, "threadIdx.y")
    sch.bind(thread, "threadIdx.x")


def as_vectors(sch: s_tir.Schedule, block: SBlockRV, lanes: int) -> None:
    """Vectorize the last loop of `block`, of a multiple of `lanes` iterations, where there is a type for it."""
    if lanes in VECTORS:
        vectorize_last(sch, block, lanes)


def unroll(sch: s_tir.Schedule, loop: LoopRV, steps: int | ExprRV) -> None:
    """Let the CUDA compiler unroll `loop` and those in it, up to so many steps in all."""
    sch.annotate(loop, "pragma_auto_unroll_max_step", steps)
    sch.annotate(loop, "pragma_unroll_explicit", 0)
