# SPDX-License-Identifier: Apache-2.0
"""Convolutions and linear layers with packed weights on Intel's AMX: a tile of pixels by a pack is one call.

The sums of up to 16 pixels of a row lie in the first-level cache; bias, ReLU and residual add run on them before they
leave, as in `packed_gemm.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import SBlockRV

from ...target import core_count
from ...te.blocks import Block
from ..buffers import total_bytes
from ..packed_weight import packed_weight
from ..placing import reverse_compute_at
from ..rule import (
    ScheduleRule,
    default_or_space,
    divisors,
    find_blocks,
    fuse_epilogue,
    loop_extents,
    loops_by_kind,
    thread_choices,
    vectorize_last,
)
from . import amx
from .elementwise import schedule_producers

# pixels of a tile below which vectors do as well
_FEW = 4
# steps of the sum, likewise
_SHORT = 4
# times the products that vectors make in the same time
_FASTER = 8
# this many structural variants make a design space
_VARIANTS = 8


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    pixels: int
    """of a tile, along a row"""
    parts: int
    """of a picture's rows; the tiles of a part take turns with one pack of weights before the next"""
    parallel: bool = True
    """run on all cores"""


class AmxGemm(ScheduleRule):
    """Schedule the blocks `[pad_temp] -> conv2d -> conv2d_out -> epilogue` whose products tiles take."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        if (block := _products(sch, target)) is None:
            return None
        return default_or_space(_plans(sch, block, target), lambda plan: _schedule(func, target, plan), tunable)


def _products(sch: s_tir.Schedule, target: tvm.target.Target) -> SBlockRV | None:
    """Return the block of products that tiles take; None where there is none."""
    found = find_blocks(sch, Block.CONV2D, Block.CONV2D_OUT)
    if found is None or loop_extents(sch, sch.get_loops(found[0])) is None:
        return None
    block = sch.get(found[0])
    weight = packed_weight(block)
    dtypes = tuple(str(region.source.dtype) for region in block.reads[-2:])
    if weight.values == 1 or weight.steps < _SHORT or weight.lanes % amx.LANES or not amx.has_amx(target, dtypes[1]):
        return None
    # an axis without extent is none to TVM: windows along one axis, or three, would be intrinsics of their own
    axes = sum(int(size) > 1 for size in weight.buffer.shape[1:3])
    fits = axes == 0 or (axes == 2 and len(block.reads[-2].region) == 4)
    return found[0] if fits and dtypes[0] == amx.INPUTS[dtypes[1]][0] and _neighbours(block) else None


def _tile(sch: s_tir.Schedule, block: SBlockRV, pixels: int) -> amx.AmxTile:
    """Return what one call multiplies where tiles have so many pixels."""
    weight = packed_weight(sch.get(block))
    height, width = (int(size) for size in weight.buffer.shape[1:3])
    return amx.AmxTile(str(weight.buffer.dtype), pixels, weight.lanes // amx.LANES, weight.steps, (height, width))


def _neighbours(block: s_tir.SBlock) -> bool:
    """Return whether pixels of a row, and a window's places, are beside each other in what is read."""
    x = block.reads[-2]
    steps = [
        step
        for index in x.region[1:-1]
        for step in tvm.sym.detect_linear_equation(index.min, [axis.var for axis in block.iter_vars])[:-1]
    ]
    return all(isinstance(step, tirx.IntImm) and int(step) in (0, 1) for step in steps)


def _plans(sch: s_tir.Schedule, block: SBlockRV, target: tvm.target.Target) -> list[_Plan]:
    """Return the variants, the default first."""
    spatial, _ = loops_by_kind(sch, block)
    loops = loop_extents(sch, sch.get_loops(block))
    assert loops is not None
    columns = int(sch.get(spatial[-2]).extent)
    widths = [pixels for pixels in divisors(columns, amx.ROWS)[::-1] if pixels >= _FEW]
    parallel, *other = thread_choices(math.prod(loops) // _FASTER)
    plans = []
    for pixels in widths:
        # of a matrix, which has no rows of pixels, its tiles
        own, *others = _part_counts(sch, block, loops[: len(spatial) - 2] or [columns // pixels], target)
        plans += [_Plan(pixels, own, parallel), *(_Plan(pixels, count, parallel) for count in others)]
    return [*plans[:_VARIANTS], *(replace(plans[0], parallel=choice) for choice in other if plans)]


def _part_counts(sch: s_tir.Schedule, block: SBlockRV, rows: list[int], target: tvm.target.Target) -> list[int]:
    """Return into how many parts to divide the last of `rows`, of pictures each, the default first.

    A part for each core, whose pixels it keeps in its cache; all together, the packs divided among the cores, where
    weights are larger than what they are multiplied by.
    """
    x, weight = (total_bytes(read.source) for read in sch.get(block).reads[-2:])
    cores, pictures, own = core_count(target), math.prod(rows[:-1]), rows[-1]
    each = next((count for count in divisors(own, own) if count * pictures % cores == 0), 1)
    counts = [1, each] if weight > x else [each, 1]
    return list(dict.fromkeys([*counts, own]))


def _schedule(func: tirx.PrimFunc, target: tvm.target.Target, plan: _Plan) -> s_tir.Schedule | None:
    sch = s_tir.Schedule(func)
    block = sch.get_sblock(Block.CONV2D)
    if not schedule_producers(sch, block, target):
        return None
    epilogue = fuse_epilogue(sch, block)
    if epilogue is None:
        return None
    spatial, reduced = loops_by_kind(sch, block)
    weight = packed_weight(sch.get(block))
    *places, step, value = reduced
    tile = _tile(sch, block, plan.pixels)
    within = places if tile.window != (1, 1) else []
    outer, pixel = sch.split(spatial[-2], [None, plan.pixels])
    pack, lane = sch.split(spatial[-1], [None, weight.lanes])
    if rows := spatial[:-2]:
        part, row = sch.split(rows[-1], [plan.parts, None])
        order, turns = [*rows[:-1], part], [row, outer]
    else:
        part, turn = sch.split(outer, [plan.parts, None])
        order, turns = [part], [turn]
    sch.reorder(*order, pack, *turns, *([] if within else places), pixel, lane, *within, step, value)
    task, turn = sch.fuse(*order, pack), sch.fuse(*turns)
    if plan.parallel:
        sch.parallel(task)
    reverse_compute_at(sch, epilogue, turn)
    sch.set_scope(block, 0, "local")
    zero = sch.decompose_reduction(block, pixel if within or not places else places[0])
    tile.register()
    sch.tensorize(sch.get_loops(zero)[-2], tile.zero)
    sch.tensorize(pixel, tile.intrinsic)
    sch.annotate(task, "pragma_import_llvm", tile.llvm_function)
    vectorize_last(sch, epilogue, amx.LANES)
    return sch
