# SPDX-License-Identifier: Apache-2.0
"""The box of outputs that a block of threads takes of an involution, and how good a box is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm

from ..rule import divisors, largest_divisor
from ..window import Window
from .limits import max_threads, shared_bytes, vector_bytes, warp_size
from .stage import STAGED_BYTES

# sums that a thread keeps in registers, pixels of a strip
_SUMS, _STRIP = 64, 8
# threads of a block, of all that a target allows: smaller blocks overlap better
_THREADS = 256
# of the GPUs that the default is chosen for, and what they read from L2 a cycle
_MULTIPROCESSORS, _CACHE_BYTES_A_CYCLE, _SECTOR_BYTES = 132, 3000, 32
# threads of a multiprocessor that hide latencies; instructions that copy a vector to shared memory
_RESIDENT_THREADS, _COPY_INSTRUCTIONS = 256, 16


@dataclass(frozen=True)
class Box:
    """Neighbouring pixels by some groups; a thread owns a strip of pixels by a vector of a group's channels."""

    rows: int
    strips: int
    """side by side in a row"""
    pixels: int
    """of a strip"""
    groups: int
    channels: int
    """of a group that a thread owns"""
    widest: int
    """elements of the widest vector"""

    def threads(self, window: Window) -> int:
        """Threads of a block."""
        return self.rows * self.strips * self.groups * window.group_channels // self.channels

    def kernel_elements(self, window: Window) -> int:
        """Kernel values of the box."""
        return self.rows * self.strips * self.pixels * self.groups * window.taps

    def x_elements(self, window: Window) -> int:
        """Elements of x that the box's windows cover."""
        rows, columns = window.seen(self.rows, self.strips * self.pixels)
        return rows * columns * self.groups * window.group_channels

    def x_vector(self, window: Window) -> int:
        """Channels of the box that are copied as a vector."""
        return largest_divisor(self.groups * window.group_channels, self.widest)

    def kernel_vector(self, window: Window) -> int:
        """Kernel values that are copied as a vector."""
        # the kernels of a pixel's groups lie side by side
        return math.gcd(self.groups * window.taps, self.widest)

    def shared_bytes(self, window: Window) -> int:
        """Shared memory of the box."""
        return (self.kernel_elements(window) + self.x_elements(window)) * window.element_bytes


def boxes(window: Window, target: tvm.target.Target, hidden: int = 0) -> list[Box]:
    """Return the boxes that fit the target, the best first.

    Args:
        hidden: channels that the kernel is generated from in shared memory; 0 where it is copied to it.
    """
    widest = vector_bytes(target, window.dtype) // window.element_bytes
    vector = largest_divisor(window.group_channels, widest)
    found = []
    for pixels in divisors(window.out_columns, min(_STRIP, max(1, _SUMS // vector))):
        for strips in divisors(window.out_columns // pixels, 16):
            for rows in divisors(window.out_rows, 16):
                for groups in divisors(window.groups, 16):
                    box = Box(rows, strips, pixels, groups, vector, widest)
                    fits = box.shared_bytes(window) <= shared_bytes(target)
                    if fits and box.threads(window) <= min(max_threads(target), _THREADS):
                        found.append(box)
    return sorted(found, key=lambda box: _cost(box, window, target, hidden))


def _cost(box: Box, window: Window, target: tvm.target.Target, hidden: int) -> float:
    """Estimate a box's cycles: the slowest of instructions, shared and global memory, and some of the rest."""
    outputs = box.rows * box.strips * box.pixels * box.groups * window.group_channels
    blocks = window.outputs / outputs
    threads = box.threads(window)
    warps = math.ceil(threads / warp_size(target)) * blocks
    _, seen = window.seen(1, box.pixels)
    taps = box.pixels * window.kernel_columns
    vector_loads, conversions = seen, (seen * box.channels + taps) * (window.element_bytes < 4)
    instructions: float = window.kernel_rows * (taps * box.channels + vector_loads + taps + conversions)
    kernel_elements = 0 if hidden else box.kernel_elements(window)
    # loads behind a test that do not all wait in registers wait for each other
    serial = 4 if box.x_elements(window) * window.element_bytes > STAGED_BYTES * threads else 1
    copies = serial * box.x_elements(window) / box.x_vector(window) + kernel_elements / box.kernel_vector(window)
    instructions += _COPY_INSTRUCTIONS * copies / threads
    generate = box.kernel_elements(window) * hidden / threads
    tile = box.pixels * box.kernel_vector(window)
    converted = (box.pixels + box.kernel_vector(window)) * (window.element_bytes < 4)
    instructions += generate * (1 + (box.pixels / box.widest + 1 + converted) / tile)
    # a vector load of a warp takes as long as four others
    loads: float = window.kernel_rows * (4 * vector_loads + taps)
    loads += generate * (4 * box.pixels / box.widest + box.kernel_vector(window) * window.element_bytes / 4) / tile
    resident = min(2048, 4 * shared_bytes(target) // box.shared_bytes(window) * threads)
    issue = instructions * max(1.0, warps / (4 * _MULTIPROCESSORS)) * max(1.0, _RESIDENT_THREADS / resident)
    shared = loads * max(1.0, warps / _MULTIPROCESSORS)
    # a pixel's kernels begin and end within sectors
    sectors = 0 if hidden else box.rows * box.strips * box.pixels * _SECTOR_BYTES
    elements = box.x_elements(window) + kernel_elements + outputs
    bandwidth = _CACHE_BYTES_A_CYCLE * min(1.0, blocks / _MULTIPROCESSORS)
    memory = blocks * (elements * window.element_bytes + sectors) / bandwidth
    return max(issue, shared, memory) + (issue + shared + memory) / 4
