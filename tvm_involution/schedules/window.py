# SPDX-License-Identifier: Apache-2.0
"""What the aggregation of an involution computes, along one to three axes, read from its block.

A depthwise convolution is one whose kernel is the same everywhere, of a channel a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV

from ..te.blocks import Block
from ..te.checks import LAYOUTS, space_of
from .rule import find_block


@dataclass(frozen=True)
class Window:
    """The sizes of an involution, or of a depthwise convolution; tuples have a number for each spatial axis."""

    layout: str
    """NHWC or NCHW; NWC, NCW, NDHWC, NCDHW"""
    batch: int
    out_size: tuple[int, ...]
    channels: int
    groups: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    """of x and the kernel"""

    @property
    def channels_last(self) -> bool:
        """Whether the channels of a pixel lie side by side."""
        return self.layout.endswith("C")

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of x or the kernel."""
        return tvm.DataType(self.dtype).bits // 8

    @property
    def group_channels(self) -> int:
        """Channels that share a kernel."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel values of a pixel and group."""
        return math.prod(self.kernel_size)

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.batch * math.prod(self.out_size) * self.channels

    @property
    def out_rows(self) -> int:
        """Rows of a plane of the output: 1 where there is one axis alone."""
        return _row(self.out_size)

    @property
    def out_columns(self) -> int:
        """Pixels of a row of the output."""
        return self.out_size[-1]

    @property
    def kernel_planes(self) -> int:
        """Planes of taps: 1 but in three dimensions."""
        return math.prod(self.kernel_size[:-2])

    @property
    def kernel_rows(self) -> int:
        """Rows of a plane of taps: 1 where there is one axis alone."""
        return _row(self.kernel_size)

    @property
    def kernel_columns(self) -> int:
        """Taps of a row."""
        return self.kernel_size[-1]

    def seen(self, rows: int, columns: int) -> tuple[int, int]:
        """Return the rows and columns of x that the windows of a box of outputs cover."""
        return (
            (rows - 1) * _row(self.stride) + (self.kernel_rows - 1) * _row(self.dilation) + 1,
            (columns - 1) * self.stride[-1] + (self.kernel_columns - 1) * self.dilation[-1] + 1,
        )

    @property
    def seen_planes(self) -> int:
        """The planes of x that the windows of a plane of outputs cover, those between dilated taps included."""
        return (self.kernel_planes - 1) * self.dilation[0] + 1


def find_involution(sch: s_tir.Schedule) -> tuple[SBlockRV, Window] | None:
    """Return the aggregation and its sizes; None where there is none, or a size is not known at compile time."""
    block = find_block(sch, Block.INVOLUTION)
    window = None if block is None else read_window(sch, block)
    return None if block is None or window is None else (block, window)


def reads_kernel(sch: s_tir.Schedule, block: SBlockRV) -> bool:
    """Return whether an aggregation reads its kernel from memory, and x, padded at most."""
    padded = find_block(sch, Block.PADDED)
    producers = [producer for known in (block, padded) if known is not None for producer in sch.get_producers(known)]
    return all(sch.get(producer).name_hint == Block.PADDED for producer in producers)


def read_window(sch: s_tir.Schedule, block: SBlockRV) -> Window | None:
    """Return the sizes of such a block; None where one is not known at compile time."""
    iter_vars = sch.get(block).iter_vars
    axes = len(iter_vars) // 2 - 1
    if not all(isinstance(iter_var.dom.extent, tirx.IntImm) for iter_var in iter_vars):
        return None
    x, kernel = sch.get(block).reads
    variables = [iter_var.var for iter_var in iter_vars]
    last = x.region[-1].min.same_as(variables[axes + 1])
    layout = next((w for w in LAYOUTS if len(space_of(w)) == axes and w.endswith("C") == last), None)
    if layout is None or len(iter_vars) != 2 + 2 * axes:
        return None
    extents = [int(iter_var.dom.extent) for iter_var in iter_vars]
    space = [layout.index(axis) for axis in space_of(layout)]
    kernel_size = tuple(extents[-axes:])
    shape = [int(d) for d in kernel.source.shape]
    packed = len(shape) == len(layout)
    if len(shape) == 1 + axes:
        groups = extents[layout.index("C")]  # of a depthwise convolution
    else:
        groups = shape[layout.index("C") if packed or layout[1] == "C" else 1 + axes]
    indices = [x.region[axis].min for axis in space]
    return Window(
        layout=layout,
        batch=extents[0],
        out_size=tuple(extents[axis] for axis in space),
        channels=extents[layout.index("C")],
        groups=groups // math.prod(kernel_size) if packed else groups,
        kernel_size=kernel_size,
        stride=tuple(_step(index, variables[axis]) for index, axis in zip(indices, space, strict=True)),
        dilation=tuple(map(_step, indices, variables[-axes:])),
        dtype=str(x.source.dtype),
    )


def window_loops(
    sch: s_tir.Schedule, block: SBlockRV, window: Window
) -> tuple[LoopRV, LoopRV, list[LoopRV], list[LoopRV]]:
    """Return the loops of the sums over batch, channels, pixels and taps; of pixels and taps two or three each.

    Where there is one axis alone, rows of one pixel and one tap are added.
    """
    axes = len(window.out_size)
    loops = sch.get_loops(block)[-2 - 2 * axes :]
    batch, taps = loops[0], loops[2 + axes :]
    channel, space = (loops[1 + axes], loops[1 : 1 + axes]) if window.channels_last else (loops[1], loops[2 : 2 + axes])
    if axes == 1:
        space, taps = ([sch.add_unit_loop(loop), loop] for loop in (*space, *taps))
    return batch, channel, space, taps


def _row(values: tuple[int, ...]) -> int:
    return values[-2] if len(values) > 1 else 1


def _step(index: tirx.Expr, variable: tirx.Var) -> int:
    """Return how far a step of `variable` moves `index`; 1 where a single step leaves none."""
    coefficients = tvm.sym.detect_linear_equation(index, [variable])
    return int(coefficients[0]) or 1
