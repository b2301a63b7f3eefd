# SPDX-License-Identifier: Apache-2.0
"""Involution's gradient by its kernel on CPUs: a vector of the output's gradient is used by many taps."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import tvm
from tvm import tirx
from tvm.script.ir_builder import tirx as T

from .aggregation import Aggregation
from .tiles import Program, Seen, Sums, Tile, loops, up

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
    with p.function(*shapes) as (grad, x, out), p.tasks(p.out[0] // rows) as (n, g, block):
        seen.fill(x, n, g, block, rows)
        values, sums = Tile(sizes.group_channels, width), Tile(sizes.taps, width)
        values.clear()
        with loops(rows, *p.out[1:-1]) as row:
            at = (block * rows + row[0], *row[1:])
            with p.row(sizes.group_channels, columns) as (c, j):
                values[c, j] = grad[p.feature(n, g * sizes.group_channels + c, (*at, j))].astype("float32")
            with T.serial(0, width // lanes) as vector:
                first = vector * lanes
                for looped, inner in _groups(sizes, p.registers):
                    with loops(*looped) as outer:
                        taps = [(*outer, *tap) for tap in inner]
                        total = Sums(len(taps), lanes)
                        with T.serial(0, sizes.group_channels) as c:
                            for r, lane in total.each():
                                value = seen.at(c, row, taps[r], first + lane)
                                total[r, lane] += values[c, first + lane] * value
                        for r, lane in total.each():
                            sums[p.tap_number(taps[r]), first + lane] = total[r, lane]
            with p.row(sizes.taps, columns) as (t, j):
                out[p.tap(n, g, t, (*at, j))] = p.rounded(sums[t, j])
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
