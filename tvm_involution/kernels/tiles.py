# SPDX-License-Identifier: Apache-2.0
"""What the programs of this folder are written with: tasks, tiles of float32, sums in registers.

A task is one picture, one group and some rows. It copies what it needs into tiles of float32, a row of a channel
behind the other and with zeros around, whatever the tensors' layout and dtype. So all sums are over neighbouring pixels
in whole vectors, without a condition. Columns that a stride takes apart lie apart in a tile: those of one remainder, a
phase, behind those of another.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tvm
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from ..schedules.rule import LANES, divisors, largest_divisor
from ..target import core_count, vector_bytes, vector_registers
from .aggregation import Aggregation

LINE = 16
"""numbers of a line of the cache"""
# bytes of the largest tile of a task, a part of a second-level cache
_TILE = 512 << 10

Index = Any
"""an int or an expression of loops' variables"""


class Tile:
    """Numbers of a task in float32."""

    def __init__(self, *shape: int) -> None:
        """Allocate them; the rows of the last axis begin at lines of the cache where its extent is whole lines."""
        self.shape = shape
        # an odd number of lines from one of the first axis to the next: these fall on all sets of the cache
        stride = math.prod(shape[1:])
        self._stride = stride + LINE * (len(shape) > 1 and stride % (2 * LINE) == 0)
        self._size = up(self._stride * shape[0], LINE)
        self._numbers = T.buffer_proxy(T.alloc_buffer((self._size,), "float32"))

    def __getitem__(self, at: Index) -> tirx.Expr:
        return self._numbers[self._place(at)]

    def __setitem__(self, at: Index, value: tirx.Expr) -> None:
        self._numbers[self._place(at)] = value

    def clear(self) -> None:
        """Set all numbers to zero."""
        with T.serial(0, self._size, annotations={LANES: LINE}) as i:
            self._numbers[i] = zero()

    def _place(self, at: Index) -> Index:
        at = at if isinstance(at, tuple) else (at,)
        inner: Index = 0
        for index, extent in zip(at[1:], self.shape[1:], strict=True):
            inner = inner * extent + index
        return at[0] * self._stride + inner


class Sums:
    """So many vectors of sums in registers, zero at first."""

    def __init__(self, count: int, lanes: int) -> None:
        self._count, self._lanes = count, lanes
        self._numbers = T.buffer_proxy(T.alloc_buffer((count * lanes,), "float32", scope="local"))
        for at in self.each():
            self[at] = zero()

    def each(self) -> Iterator[tuple[int, Index]]:
        """Yield the number of each vector with its lanes; what is written to these is one instruction."""
        for number in range(self._count):
            with T.vectorized(0, self._lanes) as lane:
                yield number, lane

    def __getitem__(self, at: tuple[int, Index]) -> tirx.Expr:
        return self._numbers[at[0] * self._lanes + at[1]]

    def __setitem__(self, at: tuple[int, Index], value: tirx.Expr) -> None:
        self._numbers[at[0] * self._lanes + at[1]] = value


class Program:
    """What the programs of one involution for one target share."""

    def __init__(self, sizes: Aggregation, target: tvm.target.Target) -> None:
        self.sizes = sizes
        self.target = target
        self.out = sizes.out_size
        # half of the registers hold sums, the others what is multiplied
        self.registers = vector_registers(target) // 2
        self.together = largest_divisor(sizes.group_channels, self.registers)
        self.reach = [step * (taps - 1) for step, taps in zip(sizes.dilation, sizes.kernel_size, strict=True)]
        """from the first pixel of a window to its last, along each axis"""

    @contextlib.contextmanager
    def function(self, *shapes: Sequence[int]) -> Iterator[list[Any]]:
        """Begin a function of tensors of these shapes, which is `self.made` when the block ends."""
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name("main")
                T.func_attr({"global_symbol": "main", "tirx.noalias": True, "target": self.target})
                buffers = [T.arg(f"tensor{i}", T.buffer(s, self.sizes.dtype)) for i, s in enumerate(shapes)]
                yield [T.buffer_proxy(buffer) for buffer in buffers]
            self.made: tirx.PrimFunc = builder.get()

    @contextlib.contextmanager
    def tasks(self, blocks: int) -> Iterator[tuple[Index, Index, Index]]:
        """Begin the loop over the tasks: picture, group and block of rows."""
        with T.parallel(0, self.sizes.batch * self.sizes.groups * blocks) as task:
            yield task // (self.sizes.groups * blocks), task // blocks % self.sizes.groups, task % blocks

    def rows_of_task(self, rows: int, tile_bytes: Callable[[int], int]) -> int:
        """Return how many of `rows` a task takes: as many as fit its tile and leave every core something to do."""
        pictures = self.sizes.batch * self.sizes.groups
        fitting = [
            d
            for d in divisors(rows, rows)
            if tile_bytes(d) <= _TILE and pictures * (rows // d) >= 2 * core_count(self.target)
        ]
        return max(fitting, default=1)

    def lanes_for(self, columns: int) -> int:
        """Return the length of the vectors for a row: shorter ones where as many of them do."""
        lanes = vector_bytes(self.target) // 4
        while lanes > 4 and -(-columns // (lanes // 2)) <= -(-columns // lanes):
            lanes //= 2
        return lanes

    def feature(self, n: Index, c: Index, pixel: Sequence[Index]) -> tuple[Index, ...]:
        """Return where channel c of a pixel is in a feature map."""
        return (n, *pixel, c) if self.sizes.channels_last else (n, c, *pixel)

    def tap(self, n: Index, g: Index, tap: Index, pixel: Sequence[Index]) -> tuple[Index, ...]:
        """Return where the value of tap number `tap` of an output pixel is in a kernel."""
        window: list[Index] = []
        for extent in reversed(self.sizes.kernel_size[1:]):
            window.insert(0, tap % extent)
            tap = tap // extent
        window.insert(0, tap)
        return (n, *pixel, g, *window) if self.sizes.channels_last else (n, g, *window, *pixel)

    def tap_number(self, tap: Sequence[Index]) -> Index:
        """Return the number of a tap in a window, row by row."""
        number: Index = 0
        for index, extent in zip(tap, self.sizes.kernel_size, strict=True):
            number = number * extent + index
        return number

    @contextlib.contextmanager
    def row(self, planes: int, columns: int) -> Iterator[tuple[Index, Index]]:
        """Begin the loops over the columns of a row in so many planes, in the order in which tensors have them."""
        if self.sizes.channels_last:
            with T.serial(0, columns) as j, T.serial(0, planes) as plane:
                yield plane, j
        else:
            with T.serial(0, planes) as plane, T.serial(0, columns, annotations={LANES: LINE}) as j:
                yield plane, j

    def rounded(self, value: tirx.Expr) -> tirx.Expr:
        """Return a sum in the tensors' dtype."""
        return value.astype(self.sizes.dtype)


class Seen:
    """The tile of x that the windows of a task's outputs see."""

    def __init__(self, program: Program, width: int) -> None:
        """Plan it, for rows of `width` outputs."""
        self._program, self._sizes = program, program.sizes
        self._width = up(width + program.reach[-1] // self._sizes.stride[-1], LINE)

    def bytes_of(self, rows: int) -> int:
        """Return the bytes of the tile for so many rows of outputs."""
        return 4 * math.prod(self._shape(rows))

    def fill(self, x: Any, n: Index, g: Index, block: Index, rows: int) -> None:
        """Copy what a block of so many rows of outputs sees."""
        s, program = self._sizes, self._program
        shape = self._shape(rows)
        self._tile = Tile(*shape)
        self._tile.clear()
        (stride, pad), (_, last_pad) = ((s.stride[i], s.padding[i]) for i in (0, -1))
        columns, step = s.size[-1], s.stride[-1]
        with loops(*shape[1:-2]) as line:
            top = block * (rows * stride) - pad
            at = [top + line[0], *(index - p for index, p in zip(line[1:], s.padding[1:-1], strict=True))]
            with where(*(within(index, extent) for index, extent in zip(at, s.size[:-1], strict=True))):
                for phase in range(step):
                    # column w * stride + phase of the padded row
                    first = -(-(last_pad - phase) // step) if phase < last_pad else 0
                    count = min(-(-(columns + last_pad - phase) // step), shape[-1]) - first
                    if count < 1:
                        continue
                    with program.row(s.group_channels, count) as (c, w):
                        column = (w + first) * step + (phase - last_pad)
                        value = x[program.feature(n, g * s.group_channels + c, (*at, column))]
                        self._tile[(c, *line, phase, w + first)] = value.astype("float32")

    def at(self, c: Index, row: Sequence[Index], tap: Sequence[Index], j: Index) -> tirx.Expr:
        """Return what a tap of output pixel (*row, j), whose row is counted within the block, sees of a channel."""
        s = self._sizes
        axes = zip(row, tap, s.stride[:-1], s.dilation[:-1], strict=False)
        lines = [index * stride + t * dilation for index, t, stride, dilation in axes]
        moved = tap[-1] * s.dilation[-1]
        return self._tile[(c, *lines, moved % s.stride[-1], j + moved // s.stride[-1])]

    def _shape(self, rows: int) -> tuple[int, ...]:
        s, program = self._sizes, self._program
        outputs = (rows, *program.out[1:-1])
        axes = zip(outputs, s.stride, program.reach, strict=False)
        lines = [(size - 1) * step + reach + 1 for size, step, reach in axes]
        return (s.group_channels, *lines, s.stride[-1], self._width)


@contextlib.contextmanager
def loops(*extents: int) -> Iterator[list[Index]]:
    """Begin nested loops."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(T.serial(0, extent)) for extent in extents]


@contextlib.contextmanager
def where(*conditions: Index) -> Iterator[None]:
    """Begin what is done where all conditions hold."""
    with T.If(tirx.all(*conditions)), T.Then():
        yield


def within(index: Index, extent: int) -> tirx.Expr:
    """Return whether an index is one of an axis."""
    return tirx.all(index >= 0, index < extent)


def up(number: int, step: int) -> int:
    """Return the next multiple."""
    return -(-number // step) * step


def zero() -> tirx.Expr:
    """Return 0 in float32."""
    return tirx.const(0, "float32")
