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

from ...te.blocks import Block
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
# this many structural variants make a design space
_VARIANTS = 8


@dataclass(frozen=True)
class _Plan:
    """A structural variant."""

    pixels: int
    """of a tile, along a row"""
    channels_first: bool
    """walk the packs of output channels in the outer loop"""
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
        return default_or_space(_plans(sch, block), lambda plan: _schedule(func, target, plan), tunable)


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
    return found[0] if dtypes[0] == amx.INPUTS[dtypes[1]][0] and _neighbours(block) else None


def _tile(sch: s_tir.Schedule, block: SBlockRV, pixels: int) -> amx.AmxTile:
    """Return what one call multiplies where tiles have so many pixels."""
    weight = packed_weight(sch.get(block))
    height, width = (int(size) for size in weight.buffer.shape[1:3])
    # places of a window along one axis alone are a call each
    window = (height, width) if min(height, width) > 1 else (1, 1)
    return amx.AmxTile(str(weight.buffer.dtype), pixels, weight.lanes // amx.LANES, weight.steps, window)


def _neighbours(block: s_tir.SBlock) -> bool:
    """Return whether pixels of a row, and a window's places, are beside each other in what is read."""
    x = block.reads[-2]
    steps = [
        step
        for index in x.region[1:-1]
        for step in tvm.sym.detect_linear_equation(index.min, [axis.var for axis in block.iter_vars])[:-1]
    ]
    return all(isinstance(step, tirx.IntImm) and int(step) in (0, 1) for step in steps)


def _plans(sch: s_tir.Schedule, block: SBlockRV) -> list[_Plan]:
    """Return the variants, the default first."""
    spatial, _ = loops_by_kind(sch, block)
    loops = loop_extents(sch, sch.get_loops(block))
    assert loops is not None
    columns = int(sch.get(spatial[-2]).extent)
    widths = [pixels for pixels in divisors(columns, amx.ROWS)[::-1] if pixels >= _FEW]
    parallel, *other = thread_choices(math.prod(loops) // 8)
    weight = packed_weight(sch.get(block))
    channels_first = weight.packs * weight.lanes > math.prod(loops[: len(spatial) - 1])
    plans = [_Plan(pixels, channels_first, parallel) for pixels in widths]
    if plans:
        plans.insert(1, replace(plans[0], channels_first=not channels_first))
        plans += [replace(plans[0], parallel=choice) for choice in other]
    return plans[:_VARIANTS]


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
    tiles = [*spatial[:-2], outer]
    order = [pack, *tiles] if plan.channels_first else [*tiles, pack]
    sch.reorder(*order, *([] if within else places), pixel, lane, *within, step, value)
    task = sch.fuse(*order)
    if plan.parallel:
        sch.parallel(task)
    reverse_compute_at(sch, epilogue, task)
    sch.set_scope(block, 0, "local")
    zero = sch.decompose_reduction(block, places[0] if places and not within else pixel)
    vectorize_last(sch, zero, amx.LANES)
    tile.register()
    sch.tensorize(pixel, tile.intrinsic)
    sch.annotate(task, "pragma_import_llvm", tile.llvm_function)
    vectorize_last(sch, epilogue, amx.LANES)
    return sch
