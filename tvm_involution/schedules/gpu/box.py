# SPDX-License-Identifier: Apache-2.0
"""The box of outputs that a block of threads takes of an involution, and how good a box is."""

from __future__ import annotations

import math
from collections.abc import Callable
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
# threads of a multiprocessor that hide latencies; instructions that copy a vector to shared memory, that finish a
# pixel, that a thread needs beside, as counted in the machine code of RedNet's layers (benchmarks/gpu_prediction.py)
_RESIDENT_THREADS = 256
_COPY_INSTRUCTIONS, _PIXEL_INSTRUCTIONS, _THREAD_INSTRUCTIONS = 30, 30, 300


LANES = 32
"""of a warp"""
BANK_BYTES = 128
"""that lie side by side in the banks of shared memory"""


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

    def lanes(self, window: Window) -> int:
        """Threads side by side that own the channels of a strip."""
        return self.groups * window.group_channels // self.channels

    def threads(self, window: Window) -> int:
        """Threads of a block."""
        return self.rows * self.strips * self.lanes(window)

    def warp_rows(self, window: Window) -> int:
        """Rows of the box that a warp of 32 lanes takes; 0 where one row needs several."""
        row = self.strips * self.lanes(window)
        if row > LANES or LANES % row == 0:
            return LANES // row
        return largest_divisor(self.rows, LANES // row)

    def warps(self, window: Window) -> int | None:
        """Warps that take whole rows of the box each, or whole warps all threads; None where neither is possible."""
        if self.strips * self.lanes(window) <= LANES:
            return -(-self.rows // self.warp_rows(window))
        return None if self.threads(window) % LANES else self.threads(window) // LANES

    def kernel_elements(self, window: Window) -> int:
        """Kernel values of the box."""
        return self.rows * self.strips * self.pixels * self.groups * window.taps

    def x_elements(self, window: Window) -> int:
        """Elements of x that the box's windows cover."""
        rows, columns = window.seen(self.rows, self.strips * self.pixels)
        return window.seen_planes * rows * columns * self.groups * window.group_channels

    def x_vector(self, window: Window) -> int:
        """Channels of the box that are copied as a vector."""
        return largest_divisor(self.groups * window.group_channels, self.widest)

    def row_padding(self, window: Window) -> int:
        """Bytes, at most, that are left empty between rows of x so that they start in different banks."""
        rows, _ = window.seen(self.rows, 1)
        return rows * BANK_BYTES if self.strips == 1 and self.pixel_bytes(window) < BANK_BYTES else 0

    def pixel_bytes(self, window: Window) -> int:
        """Bytes of a pixel of x in the box."""
        return self.groups * window.group_channels * window.element_bytes

    def kernel_vector(self, window: Window) -> int:
        """Kernel values that are copied as a vector."""
        # the kernels of a pixel's groups lie side by side
        return math.gcd(self.groups * window.taps, self.widest)


@dataclass(frozen=True)
class KernelCost:
    """What the kernels of a box cost, wherever they come from."""

    shared_bytes: int
    """of a block"""
    instructions: float
    """of a thread"""
    shared_loads: float
    """of a thread; one of 16 bytes counts as four"""
    global_bytes: float
    """of a block"""


KernelCostOf = Callable[[Box, Window], KernelCost | None]
"""of a box; None where the box does not suit the kernel's source"""


def boxes(window: Window, target: tvm.target.Target, kernel_cost: KernelCostOf) -> list[Box]:
    """Return the boxes that fit the target, the best first."""
    return [box for _, box in _rated(window, target, kernel_cost)]


def estimated_cycles(window: Window, target: tvm.target.Target, kernel_cost: KernelCostOf) -> float:
    """Return the cycles that an involution should take with the best box; infinite where none fits."""
    return next((cycles for cycles, _ in _rated(window, target, kernel_cost)), math.inf)


def _rated(window: Window, target: tvm.target.Target, kernel_cost: KernelCostOf) -> list[tuple[float, Box]]:
    widest = vector_bytes(target, window.dtype) // window.element_bytes
    vector = largest_divisor(window.group_channels, widest)
    found = []
    for pixels in divisors(window.out_columns, min(_STRIP, max(1, _SUMS // vector))):
        for strips in divisors(window.out_columns // pixels, 16):
            for rows in divisors(window.out_rows, 16):
                for groups in divisors(window.groups, 16):
                    box = Box(rows, strips, pixels, groups, vector, widest)
                    if box.threads(window) > min(max_threads(target), _THREADS):
                        continue
                    kernel = kernel_cost(box, window)
                    if kernel is not None and _shared_bytes(box, window, kernel) <= shared_bytes(target):
                        found.append((_cost(box, window, target, kernel), box))
    return sorted(found, key=lambda pair: pair[0])


def copied_kernel(box: Box, window: Window) -> KernelCost:
    """Return what it costs to copy the kernels of a box to shared memory and to read them there."""
    elements, taps = box.kernel_elements(window), box.pixels * window.taps
    copies = copy_instructions(elements, box.kernel_vector(window), box.threads(window))
    # a pixel's kernels begin and end within sectors
    sectors = box.rows * box.strips * box.pixels * _SECTOR_BYTES
    return KernelCost(
        shared_bytes=elements * window.element_bytes,
        instructions=taps * (1 + (window.element_bytes < 4)) + copies,
        shared_loads=taps,
        global_bytes=elements * window.element_bytes + sectors,
    )


def multiplied_kernel(box: Box, window: Window, hidden: int) -> KernelCost:
    """Return what it costs to generate the kernels of a box on CUDA cores, from `hidden` channels, and to read them."""
    elements, taps, vector = box.kernel_elements(window), box.pixels * window.taps, box.kernel_vector(window)
    generate, tile = elements * hidden / box.threads(window), box.pixels * vector
    converted = (box.pixels + vector) * (window.element_bytes < 4)
    loads = 4 * box.pixels / box.widest + vector * window.element_bytes / 4
    return KernelCost(
        shared_bytes=elements * window.element_bytes,
        instructions=taps * (1 + (window.element_bytes < 4))
        + generate * (1 + (box.pixels / box.widest + 1 + converted) / tile),
        shared_loads=taps + generate * loads / tile,
        global_bytes=0,
    )


def copy_instructions(elements: int, vector: int, threads: int) -> float:
    """Return the instructions with which each of `threads` copies its part to shared memory."""
    return _COPY_INSTRUCTIONS * elements / vector / threads


def _shared_bytes(box: Box, window: Window, kernel: KernelCost) -> int:
    return box.x_elements(window) * window.element_bytes + kernel.shared_bytes


def _cost(box: Box, window: Window, target: tvm.target.Target, kernel: KernelCost) -> float:
    """Estimate a box's cycles: the slowest of instructions, shared and global memory, and some of the rest."""
    outputs = box.rows * box.strips * box.pixels * box.groups * window.group_channels
    blocks = window.outputs / outputs
    threads = box.threads(window)
    warps = math.ceil(threads / warp_size(target)) * blocks
    _, seen = window.seen(1, box.pixels)
    conversions = seen * box.channels * (window.element_bytes < 4)
    multiply_adds = box.pixels * window.kernel_columns * box.channels
    kernel_rows = window.kernel_planes * window.kernel_rows
    instructions: float = kernel_rows * (multiply_adds + seen + conversions) + kernel.instructions
    # loads behind a test that do not all wait in registers wait for each other
    serial = 2 if box.x_elements(window) * window.element_bytes > STAGED_BYTES * threads else 1
    instructions += serial * copy_instructions(box.x_elements(window), box.x_vector(window), threads)
    instructions += _PIXEL_INSTRUCTIONS * box.pixels + _THREAD_INSTRUCTIONS
    # a vector load of a warp takes as long as four others
    loads = kernel_rows * 4 * seen + kernel.shared_loads
    resident = min(2048, 4 * shared_bytes(target) // _shared_bytes(box, window, kernel) * threads)
    issue = instructions * max(1.0, warps / (4 * _MULTIPROCESSORS)) * max(1.0, _RESIDENT_THREADS / resident)
    shared = loads * max(1.0, warps / _MULTIPROCESSORS)
    bandwidth = _CACHE_BYTES_A_CYCLE * min(1.0, blocks / _MULTIPROCESSORS)
    moved = (box.x_elements(window) + outputs) * window.element_bytes + kernel.global_bytes
    memory = blocks * moved / bandwidth
    return max(issue, shared, memory) + (issue + shared + memory) / 4
