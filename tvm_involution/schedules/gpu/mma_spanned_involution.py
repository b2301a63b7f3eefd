# SPDX-License-Identifier: Apache-2.0
"""draft"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ...te.mma_convolution import LANES, ROWS, COLUMNS, MmaFragments
from ..rule import ScheduleRule, choose, find_block, fuse_epilogue, largest_divisor
from ..window import Window, read_window
from .box import Box, boxes
from .mma_intrinsics import mma_intrinsic
from .stage import as_vectors, unroll, TURNS, STAGED_BYTES

_UNROLLED = 1024

def bind(sch, loop, warps):
    warp, lane = sch.split(loop, [None, LANES])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")

def schedule(func, window, box, fragments, tunable=False):
    sch = s_tir.Schedule(func)
    block = find_block(sch, "involution2d")
    threads = box.threads(window)
    warps = -(-threads // LANES)
    epilogue = fuse_epilogue(sch, block)
    if epilogue is None:
        epilogue = sch.cache_write(block, 0, "local")
    padded = find_block(sch, "pad_temp")
    x = padded or sch.cache_read(block, 0, "shared")
    strip = sch.cache_read(block, 0, "local")

    def divide(b):
        batch, row, column, channel, *rest = sch.get_loops(b)[-len(sch.get(b).iter_vars):]
        row, row_thread = sch.split(row, [None, box.rows])
        column, column_thread, pixel = sch.split(column, [None, box.strips, box.pixels])
        lanes = box.groups * window.group_channels // box.channels
        channel, lane, element = sch.split(channel, [None, lanes, box.channels])
        return [batch, row, column, channel], [row_thread, column_thread, lane], rest, [pixel, element]

    outer, thread, (u, v), inner = divide(block)
    sch.reorder(*outer, u, *thread, v, *inner)
    boxes_ = sch.fuse(*outer)
    thread = sch.fuse(*thread)
    sch.bind(boxes_, "blockIdx.x")
    sch.set_scope(block, 0, "local")
    sch.compute_at(strip, thread, preserve_unit_loops=True)

    sch.reverse_compute_at(epilogue, boxes_, preserve_unit_loops=True)
    outer, ethread, _, inner = divide(epilogue)
    sch.reorder(*outer, *ethread, *inner)
    ethread = sch.fuse(*outer, *ethread)

    for copy, vector, tests in ((x, box.x_vector(window), padded is not None),):
        sch.set_scope(copy, 0, "shared")
        sch.compute_at(copy, boxes_, preserve_unit_loops=True)
        _, *loops = sch.get_loops(copy)
        last, lane = sch.split(loops[-1], [None, vector])
        turn, warp, thr = sch.split(sch.fuse(*loops[:-1], last), [None, warps, LANES])
        sch.bind(warp, "threadIdx.y")
        sch.bind(thr, "threadIdx.x")
        sch.vectorize(lane)
        unroll(sch, turn, TURNS)
        if int(sch.get(turn).extent) * vector * window.element_bytes <= STAGED_BYTES:
            sch.annotate(copy, "tirx.manifest_shared_memory_local_stage", 1)

    # generation
    kernel, mma, columns = (find_block(sch, n) for n in ("kernel", "mma", "columns"))
    slab = 16 // window.kernel_columns if False else None
    from ...te.mma_spanned_involution import slab_of
    slab = slab_of(window.groups, window.kernel_columns)
    sch.set_scope(kernel, 0, "shared")
    sch.compute_at(kernel, u, preserve_unit_loops=True, index=-2)
    b, i, j, g, uu, vv = sch.get_loops(kernel)[-6:]
    jb, quad, pair = sch.split(j, [None, 4, 2])
    trow, own = sch.split(vv, [slab.taps // 2, 2])
    s, g = sch.split(g, [None, slab.groups])
    sch.reorder(b, uu, s, i, jb, g, trow, quad, pair, own)
    lane = sch.fuse(g, trow, quad)
    task = sch.fuse(b, uu, s, i, jb)
    warp, turn = sch.split(task, [warps, None])
    sch.bind(warp, "threadIdx.y")
    sch.bind(lane, "threadIdx.x")
    sch.unroll(pair)
    sch.unroll(own)
    sch.storage_align(kernel, 0, 3, 8, 0)
    sch.compute_at(mma, turn, preserve_unit_loops=True)
    sch.set_scope(mma, 0, "warp")
    lane, pack, row, blk, r, chunk, step, quad, e = sch.get_loops(mma)[-9:]
    sch.reorder(chunk, pack, row, blk, lane, r, step, quad, e)
    sch.unroll(chunk)
    sch.unroll(turn)

    sch.set_scope(columns, 0, "shared")
    sch.compute_at(columns, boxes_, preserve_unit_loops=True)
    _, *loops = sch.get_loops(columns)
    t, warp, thr, vec = sch.split(sch.fuse(*loops), [None, warps, LANES, fragments.values])
    sch.bind(warp, "threadIdx.y")
    sch.bind(thr, "threadIdx.x")
    sch.vectorize(vec)
    unroll(sch, t, TURNS)

    init = sch.decompose_reduction(mma, chunk)
    *_, il, ir = loops = sch.get_loops(init)
    print(sch.mod.script() if False else "")
    # init loops: ..., lane, pack,row,blk, r
    for loop in loops[-5:]:
        if int(sch.get(loop).extent) == LANES:
            sch.bind(loop, "threadIdx.x")
        else:
            sch.unroll(loop)
    sch.tensorize(lane, mma_intrinsic(fragments, "global"))

    # the rest of aggregate
    unroll(sch, sch.get_loops(strip)[-2], _UNROLLED)
    as_vectors(sch, strip, box.channels)
    as_vectors(sch, epilogue, box.channels)
    unroll(sch, v, _UNROLLED)
    bind(sch, thread, warps)
    bind(sch, ethread, warps)
    zero = sch.decompose_reduction(block, u)
    return sch
