# SPDX-License-Identifier: Apache-2.0
"""Involution's gradient by x on CPUs: each pixel gathers from the outputs whose windows cover it.

Along an axis pixel y is seen by tap u of output i where y + padding = i * stride + u * dilation. So pixels are taken
by phases, the remainders of y + padding by the stride, each of which is seen by some taps alone.
"""

from __future__ import annotations

import itertools
import math
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
        axes = list(zip(sizes.stride, sizes.dilation, sizes.kernel_size, strict=True))
        self.phases = [[_Phase.of(phase, *axis) for phase in range(axis[0])] for axis in axes]
        self.reach = [max(phase.reach for phase in axis) for axis in self.phases]
        # a pixel is turn * stride + phase - padding
        self.first = [pad // step for pad, step in zip(sizes.padding, sizes.stride, strict=True)]
        last = [(size - 1 + pad) // step for size, pad, step in zip(sizes.size, sizes.padding, sizes.stride, strict=True)]
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
            with loops(*self.grads.shape[1:-1]) as line, where(within(self.top + line[0], p.out[0])):
                with p.row(sizes.group_channels, p.out[-1]) as (c, j):
                    value = grad[p.feature(self.n, self._channel(c), (self.top + line[0], *line[1:], j))]
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
        row = [
            turn * step + (phase.phase - pad)
            for turn, step, phase, pad in zip(turns, sizes.stride, phases, sizes.padding, strict=False)
        ]
        with where(*(within(index, extent) for index, extent in zip(row, sizes.size[:-1], strict=True))):
            counts = [phase.count for phase in phases]
            taps = sizes.kernel_size[-1]
            with loops(*counts) as seeing:
                outputs, number = self._seeing(turns, phases, seeing)
                with where(*(within(i, extent) for i, extent in zip(outputs, p.out[:-1], strict=True))):
                    with p.row(taps, p.out[-1]) as (v, j):
                        value = self.kernel[p.tap(self.n, self.g, number + v, (*outputs, j))]
                        self.values[number + v, self.left + j] = value.astype("float32")
            with T.serial(0, self.width // self.lanes) as vector, T.serial(0, sizes.group_channels // p.together) as part:
                channel = part * p.together
                for columns in self.phases[-1]:
                    total = Sums(p.together, self.lanes)
                    with loops(*counts) as seeing:
                        outputs, number = self._seeing(turns, phases, seeing)
                        with where(*(within(i, extent) for i, extent in zip(outputs, p.out[:-1], strict=True))):
                            with T.serial(0, columns.count) as v:
                                j = self.left + columns.output(vector * self.lanes + self.first[-1], v)
                                total.add(
                                    lambda r, lane: (
                                        self.values[number + columns.tap(v), j + lane]
                                        * self.grads[(channel + r, outputs[0] - self.top, *outputs[1:], j + lane)]
                                    )
                                )
                    total.store(
                        lambda r, lane, value: self.sums.__setitem__(
                            (channel + r, columns.phase, vector * self.lanes + lane), value
                        )
                    )
            for columns in self.phases[-1]:
                # pixel (turn + first) * stride + phase - padding of the row
                shift = self.first[-1] * sizes.stride[-1] + columns.phase - sizes.padding[-1]
                start = 1 if shift < 0 else 0
                count = -(-(sizes.size[-1] - shift) // sizes.stride[-1]) - start
                if count > 0:
                    with p.row(sizes.group_channels, count) as (c, b):
                        pixel = (*row, (b + start) * sizes.stride[-1] + shift)
                        value = self.sums[c, columns.phase, b + start]
                        self.x[p.feature(self.n, self._channel(c), pixel)] = p.rounded(value)

    def _seeing(
        self, turns: list[Index], phases: tuple[_Phase, ...], seeing: list[Index]
    ) -> tuple[list[Index], Index]:
        """Return the row of outputs that sees by some row of taps, and the number of the first of these."""
        outputs = [phase.output(turn, t) for phase, turn, t in zip(phases, turns, seeing, strict=True)]
        taps = [phase.tap(t) for phase, t in zip(phases, seeing, strict=True)]
        return outputs, self.p.tap_number([*taps, 0])

    def _channel(self, c: Index) -> Index:
        return self.g * self.sizes.group_channels + c
