# SPDX-License-Identifier: Apache-2.0
"""Involution's gradient by x on CPUs: each pixel gathers from the outputs whose windows cover it.

Along an axis pixel y is seen by tap u of output i where y + padding = i * stride + u * dilation. So pixels are taken
by phases, the remainders of y + padding by the stride, each of which is seen by some taps alone.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .aggregation import Aggregation
from .tiles import LINE, Index, Program, Sums, Tile, loops, up, where, within


@dataclass(frozen=True)
class _Phase:
    """The taps that see the pixels of a phase: number t of them is tap `first + t * step`.

    It sees pixel turn * stride + phase of the padded axis from output turn - (`back` + t * `further`).
    """

    phase: int
    count: int
    first: int
    step: int
    back: int
    further: int

    @classmethod
    def of(cls, phase: int, stride: int, dilation: int, taps: int) -> _Phase:
        """Return the taps that see a phase of an axis."""
        seeing = [tap for tap in range(taps) if tap * dilation % stride == phase]
        if not seeing:
            return cls(phase, 0, 0, 0, 0, 0)
        step = stride // math.gcd(stride, dilation)
        return cls(phase, len(seeing), seeing[0], step, seeing[0] * dilation // stride, step * dilation // stride)

    @property
    def reach(self) -> int:
        """How far back the last of them sees from."""
        return self.back + max(0, self.count - 1) * self.further

    def tap(self, t: Index) -> Index:
        """Return tap number t."""
        return t * self.step + self.first

    def output(self, turn: Index, t: Index) -> Index:
        """Return the output that sees a pixel by tap number t."""
        return turn - t * self.further - self.back


def grad_input(sizes: Aggregation, target: tvm.target.Target) -> tirx.PrimFunc:
    """Return a program of (gradient by the output, kernel, gradient by x)."""
    return _GradInput(sizes, target).made


class _GradInput:
    def __init__(self, sizes: Aggregation, target: tvm.target.Target) -> None:
        self.sizes, self.p = sizes, Program(sizes, target)
        windows = zip(sizes.stride, sizes.dilation, sizes.kernel_size, strict=True)
        self.phases = [[_Phase.of(phase, *axis) for phase in range(axis[0])] for axis in windows]
        self.reach = [max(phase.reach for phase in axis) for axis in self.phases]
        # a pixel is turn * stride + phase - padding
        self.first = [pad // step for pad, step in zip(sizes.padding, sizes.stride, strict=True)]
        axes = zip(sizes.size, sizes.padding, sizes.stride, strict=True)
        last = [(size - 1 + pad) // step for size, pad, step in axes]
        self.turns = [end - start + 1 for start, end in zip(self.first, last, strict=True)]
        self.lanes = self.p.lanes_for(self.turns[-1])
        self.width = up(self.turns[-1], self.lanes)
        # column j of the outputs is column left + j of a tile, with zeros on both sides
        self.left = up(max(0, self.reach[-1] - self.first[-1]), LINE)
        self.full = up(self.left + max(self.p.out[-1], self.first[-1] + self.width), LINE)
        self.rows = self.p.rows_of_task(self.turns[0], lambda rows: 4 * math.prod(self._seen(rows)))
        self._make()
        self.made = self.p.made

    def _seen(self, rows: int) -> tuple[int, ...]:
        """Return the shape of the tile of the output's gradient."""
        return (self.sizes.group_channels, rows + self.reach[0], *self.p.out[1:-1], self.full)

    def _make(self) -> None:
        sizes, p = self.sizes, self.p
        shapes = (sizes.feature_shape(p.out), sizes.kernel_shape, sizes.feature_shape(sizes.size))
        with p.function(*shapes) as (grad, self.kernel, self.x), p.tasks(self.turns[0] // self.rows) as task:
            self.n, self.g, block = task
            start = block * self.rows + self.first[0]
            self.top = start - self.reach[0]
            self.grads = Tile(*self._seen(self.rows))
            self.grads.clear()
            with loops(*self.grads.shape[1:-1]) as line:
                at = (self.top + line[0], *line[1:])
                with where(within(at[0], p.out[0])), p.row(sizes.group_channels, p.out[-1]) as (c, j):
                    value = grad[p.feature(self.n, self._channel(c), (*at, j))]
                    self.grads[(c, *line, self.left + j)] = value.astype("float32")
            self.values = Tile(sizes.taps, self.full)
            self.values.clear()
            self.sums = Tile(sizes.group_channels, sizes.stride[-1], self.width)
            with loops(self.rows, *self.turns[1:-1]) as counted:
                turns = [start + counted[0], *(i + f for i, f in zip(counted[1:], self.first[1:-1], strict=True))]
                for phases in itertools.product(*self.phases[:-1]):
                    self._row(turns, phases)

    def _row(self, turns: list[Index], phases: tuple[_Phase, ...]) -> None:
        """Write the gradient of a row of pixels."""
        sizes, p = self.sizes, self.p
        axes = zip(turns, sizes.stride, phases, sizes.padding, strict=False)
        row = [turn * step + (phase.phase - pad) for turn, step, phase, pad in axes]
        with where(*map(within, row, sizes.size[:-1])):
            with self._taps(turns, phases) as (outputs, number), p.row(sizes.kernel_size[-1], p.out[-1]) as (v, j):
                value = self.kernel[p.tap(self.n, self.g, number + v, (*outputs, j))]
                self.values[number + v, self.left + j] = value.astype("float32")
            with loops(self.width // self.lanes, sizes.group_channels // p.together) as (vector, part):
                for columns in self.phases[-1]:
                    self._sum(turns, phases, columns, vector * self.lanes, part * p.together)
            for columns in self.phases[-1]:
                self._write(row, columns)

    @contextlib.contextmanager
    def _taps(self, turns: list[Index], phases: tuple[_Phase, ...]) -> Iterator[tuple[list[Index], Index]]:
        """Begin the loops over the rows of taps that see a row of pixels.

        Yields:
            The row of outputs that each sees it from, and the number of its first tap.
        """
        with loops(*(phase.count for phase in phases)) as seeing:
            outputs = [phase.output(turn, t) for phase, turn, t in zip(phases, turns, seeing, strict=True)]
            taps = [phase.tap(t) for phase, t in zip(phases, seeing, strict=True)]
            with where(*map(within, outputs, self.p.out[:-1])):
                yield outputs, self.p.tap_number([*taps, 0])

    def _sum(
        self, turns: list[Index], phases: tuple[_Phase, ...], columns: _Phase, first: Index, channel: Index
    ) -> None:
        """Sum up a vector of pixels of some channels."""
        total = Sums(self.p.together, self.lanes)
        with self._taps(turns, phases) as (outputs, number), T.serial(0, columns.count) as v:
            j = self.left + columns.output(first + self.first[-1], v)
            for r, lane in total.each():
                value = self.grads[(channel + r, outputs[0] - self.top, *outputs[1:], j + lane)]
                total[r, lane] += self.values[number + columns.tap(v), j + lane] * value
        for r, lane in total.each():
            self.sums[channel + r, columns.phase, first + lane] = total[r, lane]

    def _write(self, row: list[Index], columns: _Phase) -> None:
        """Write the pixels of a phase of a row, those that are turn * stride + shift."""
        size, stride = self.sizes.size[-1], self.sizes.stride[-1]
        shift = self.first[-1] * stride + columns.phase - self.sizes.padding[-1]
        start = 1 if shift < 0 else 0
        count = -(-(size - shift) // stride) - start
        if count > 0:
            with self.p.row(self.sizes.group_channels, count) as (c, turn):
                pixel = (*row, (turn + start) * stride + shift)
                value = self.sums[c, columns.phase, turn + start]
                self.x[self.p.feature(self.n, self._channel(c), pixel)] = self.p.rounded(value)

    def _channel(self, c: Index) -> Index:
        return self.g * self.sizes.group_channels + c
