# SPDX-License-Identifier: Apache-2.0
"""Kernel generation and aggregation in one, a strip of pixels at a time.

The span convolution makes the kernels of a strip for all groups, which stay in the first two levels of cache; then the
strip is aggregated as in `Involution`. In float32 that takes the time of the two apart, whose tensors are in the
cache anyway. It pays for the half types: the generated kernel and the padded input stay in float32, so nothing is
rounded, stored and widened again in the innermost loop; or in bfloat16 (`te.paired_spanned_involution2d`), by dot
products of two taps.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx

from ...target import CACHE_BYTES, vector_bytes
from ...te.blocks import Block
from ...te.paired_involution import CHANNELS
from ..packed_weight import packed_weight
from ..placing import compute_at, reverse_compute_at
from ..rule import (
    ScheduleRule,
    choose,
    default_or_space,
    divisors,
    find_block,
    find_blocks,
    fuse_or_copy,
    inline_into,
    largest_divisor,
    vectorize_last,
)
from ..window import Window, find_involution
from . import dot_bf16
from .dot_products import dot_product
from .elementwise import parallel_vectorize
from .involution import longest_strip
from .registers import sum_in_registers


def fusing_pays(window: Window) -> bool:
    """Return whether the kernel should be generated where it is used.

    In half types; in float32 only where the second-level cache can't hold the kernel (docs/benchmarks.md).
    """
    kernel_values = window.batch * math.prod(window.out_size) * window.groups * window.taps
    return window.dtype in ("float16", "bfloat16") or kernel_values * 4 > CACHE_BYTES


def aggregates_pairs(window: Window, target: tvm.target.Target) -> bool:
    """Return whether the CPU can aggregate by dot products of bfloat16, also what is quantized to bytes."""
    neighbours = window.kernel_columns > 1 and window.dilation[1] == 1
    vectors = window.group_channels % CHANNELS == 0
    return window.dtype in ("bfloat16", "uint8") and dot_bf16.has_dot_bf16(target) and neighbours and vectors


class SpannedInvolution(ScheduleRule):
    """Schedule the blocks of `te.spanned_involution2d` or `te.paired_spanned_involution2d`, and the epilogue."""

    def apply(
        self, func: tirx.PrimFunc, target: tvm.target.Target, tunable: bool = False
    ) -> s_tir.Schedule | list[s_tir.Schedule] | None:
        """See `ScheduleRule.apply`."""
        sch = s_tir.Schedule(func)
        found = find_involution(sch)
        if found is None or find_blocks(sch, Block.KERNEL, Block.CONV2D, Block.CONV2D_OUT) is None:
            return None
        _, window = found
        return default_or_space((False, True), lambda first: _schedule(func, target, window, first, tunable), tunable)


def _schedule(
    func: tirx.PrimFunc, target: tvm.target.Target, window: Window, channels_first: bool, tunable: bool
) -> s_tir.Schedule | None:
    """Schedule, with `channels_first` a vector of channels of the whole strip before the next."""
    sch = s_tir.Schedule(func)
    involution, kernel, span = (sch.get_sblock(name) for name in (Block.INVOLUTION, Block.KERNEL, Block.CONV2D))
    epilogue = fuse_or_copy(sch, involution)
    if window.layout != "NHWC" or epilogue is None:
        return None
    weight, spanned = packed_weight(sch.get(span)), int(sch.get(kernel).writes[0].source.shape[3])
    packed, lanes = weight.lanes, vector_bytes(target) // 4
    if spanned % packed or spanned < 2 * lanes:
        return None
    pixels_paired = window.dtype == "uint32"
    width = dot_bf16.SUMS if pixels_paired else largest_divisor(window.group_channels, lanes)
    if find_block(sch, Block.TAPS) is not None:
        sch.compute_inline(Block.TAPS)
    inline_into(sch, kernel, keep=span)
    for producer in sch.get_producers(involution):
        if sch.get(producer).name_hint != Block.KERNEL:
            inline_into(sch, producer)
            parallel_vectorize(sch, producer, target)

    strips = divisors(window.out_columns, longest_strip(target))

    # aggregation: the outermost loops
    batch, row, column, channel, kernel_row, kernel_column = sch.get_loops(involution)
    column_outer, pixel = sch.split(column, [None, choose(sch, strips, strips[-1], tunable)])
    channel_outer, lane = sch.split(channel, [None, width])
    sch.reorder(batch, row, column_outer, channel_outer, kernel_row, kernel_column, pixel, lane)
    task = sch.fuse(batch, row, column_outer)
    sch.parallel(task)
    reverse_compute_at(sch, epilogue, channel_outer)
    vectorize_last(sch, epilogue, width)

    # As a block of its own: whole packs, also where the last holds more than the kernel, and no border cuts a vector.
    # A single pack in halves: TVM 0.27 places no block of which there is one.
    part = packed if spanned > packed else largest_divisor(packed, lanes)
    vector_lanes = largest_divisor(part, lanes)
    *_, taps = sch.get_loops(kernel)
    _, vector, _ = sch.split(taps, [None, part // vector_lanes, vector_lanes])
    whole = sch.blockize(vector)
    compute_at(sch, whole, task, rounded=True)
    _, *pixels, pack = sch.get_loops(whole)
    sch.reorder(pack, *pixels)
    compute_at(sch, span, pack)
    sch.vectorize(sch.get_loops(kernel)[-1])
    loops = sch.get_loops(span)[2:]
    pair = [loops.pop()] if weight.values > 1 else []
    b, y, z, taps, window_row, window_column, step = loops
    vector, tap = sch.split(taps, [None, vector_lanes])
    sch.reorder(b, y, window_row, window_column, step, z, vector, tap, *pair)
    dot = dot_product(weight, target)
    if pixels_paired:
        dot_bf16.register()
    by_pixels, by_taps = dot_bf16.PIXELS if pixels_paired else None, dot.intrinsic if dot else None
    sum_in_registers(sch, involution, kernel_row, [kernel_column, pixel], lane, by_pixels)
    sum_in_registers(sch, span, window_row, [z, vector], tap, by_taps)
    functions = dict.fromkeys([dot_bf16.LLVM_FUNCTION] * pixels_paired + ([dot.llvm_function] if dot else []))
    if functions:
        sch.annotate(task, "pragma_import_llvm", "".join(functions))
    return sch
