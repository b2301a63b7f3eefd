# SPDX-License-Identifier: Apache-2.0
"""Involution's gradient by its kernel on CPUs: a vector of the output's gradient is used by many taps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .aggregation import Aggregation
from .tiles import Index, Program, Seen, Sums, Tile, loops, up

# taps of a window whose steps are written one by one
_UNROLLED = 128


def grad_kernel(sizes: Aggregation, target: tvm.target.Target) -> tirx.PrimFunc:
    """Return a program of (gradient by the output, x, gradient by the kernel)."""
    p = Program(sizes, target)
    lanes, columns = p.lanes_for(p.out[-1]), p.out[-1]
    width = up(columns, lanes)
    seen = Seen(p, width)
    rows = p.rows_of_task(p.out[0], seen.bytes_of)
    shapes = (sizes.feature_shape(p.out), sizes.feature_shape(sizes.size), sizes.kernel_shape)
    # whole vectors are written at once, what is left of a row from a tile
    whole = 0 if sizes.channels_last else columns // lanes
    with p.function(*shapes) as (grad, x, out), p.tasks(p.out[0] // rows) as (n, g, block):
        seen.fill(x, n, g, block, rows)
        values, sums = Tile(sizes.group_channels, width), Tile(sizes.taps, width - whole * lanes or lanes)
        values.clear()

        def each_sum(row: list[Index], first: Index) -> Iterator[tuple[Index, Index, tirx.Expr]]:
            """Yield each tap and lane of a vector of outputs with its sum."""
            for looped, inner in _groups(sizes, p.registers):
                with loops(*looped) as outer:
                    taps = [(*outer, *tap) for tap in inner]
                    total = Sums(len(taps), lanes)
                    with T.serial(0, sizes.group_channels) as c:
                        for r, lane in total.each():
                            total[r, lane] += values[c, first + lane] * seen.at(c, row, taps[r], first + lane)
                    for r, lane in total.each():
                        yield p.tap_number(taps[r]), lane, total[r, lane]

        with loops(rows, *p.out[1:-1]) as row:
            at = (block * rows + row[0], *row[1:])
            with p.row(sizes.group_channels, columns) as (c, j):
                values[c, j] = grad[p.feature(n, g * sizes.group_channels + c, (*at, j))].astype("float32")
            with T.serial(0, whole) as vector:
                for tap, lane, value in each_sum(row, vector * lanes):
                    out[p.tap(n, g, tap, (*at, vector * lanes + lane))] = p.rounded(value)
            with T.serial(whole, width // lanes) as vector:
                for tap, lane, value in each_sum(row, vector * lanes):
                    sums[tap, (vector - whole) * lanes + lane] = value
            with p.row(sizes.taps, columns - whole * lanes) as (t, j):
                out[p.tap(n, g, t, (*at, whole * lanes + j))] = p.rounded(sums[t, j])
    return p.made


def _groups(sizes: Aggregation, most: int) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
    """Yield the taps that are summed together, by the extents of loops around them and their places in these.

    Of a large window all groups are within loops over its rows.
    """
    looped = () if sizes.taps <= _UNROLLED else sizes.kernel_size[:-1]
    taps = list(itertools.product(*map(range, sizes.kernel_size[len(looped) :])))
    count = -(-len(taps) // most)
    for i in range(count):
        yield looped, taps[len(taps) * i // count : len(taps) * (i + 1) // count]
