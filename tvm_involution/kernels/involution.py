# SPDX-License-Identifier: Apache-2.0
"""Involution's aggregation on CPUs: a vector of kernel values is used by all channels of its group."""

from __future__ import annotations

import tvm
from tvm import tirx

from .aggregation import Aggregation
from .tiles import Program, Seen, Sums, Tile, loops, up


def involution(sizes: Aggregation, target: tvm.target.Target) -> tirx.PrimFunc:
    """Return a program of (x, kernel, output)."""
    p = Program(sizes, target)
    lanes, columns = p.lanes_for(p.out[-1]), p.out[-1]
    width = up(columns, lanes)
    seen = Seen(p, width)
    rows = p.rows_of_task(p.out[0], seen.bytes_of)
    shapes = (sizes.feature_shape(sizes.size), sizes.kernel_shape, sizes.feature_shape(p.out))
    with p.function(*shapes) as (x, kernel, out), p.tasks(p.out[0] // rows) as (n, g, block):
        seen.fill(x, n, g, block, rows)
        values, sums = Tile(sizes.taps, width), Tile(sizes.group_channels, width)
        values.clear()
        with loops(rows, *p.out[1:-1]) as row:
            at = (block * rows + row[0], *row[1:])
            with p.row(sizes.taps, columns) as (t, j):
                values[t, j] = kernel[p.tap(n, g, t, (*at, j))].astype("float32")
            with loops(width // lanes, sizes.group_channels // p.together) as (vector, part):
                first, channel = vector * lanes, part * p.together
                total = Sums(p.together, lanes)
                with loops(*sizes.kernel_size) as tap:
                    number = p.tap_number(tap)
                    for r, lane in total.each():
                        value = seen.at(channel + r, row, tap, first + lane)
                        total[r, lane] += values[number, first + lane] * value
                for r, lane in total.each():
                    sums[channel + r, first + lane] = total[r, lane]
            with p.row(sizes.group_channels, columns) as (c, j):
                out[p.feature(n, g * sizes.group_channels + c, (*at, j))] = p.rounded(sums[c, j])
    return p.made
