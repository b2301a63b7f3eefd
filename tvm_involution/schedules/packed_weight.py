# SPDX-License-Identifier: Apache-2.0
"""The packed weight that a block of products reads: `te.pack_weight`'s, also as Winograd's and Strassen's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx

from ..target import vector_bytes
from .buffers import total_bytes
from .rule import largest_divisor


@dataclass(frozen=True)
class PackedWeight:
    """A weight (packs, rows, columns, steps, lanes), or with 2 or 4 input channels at a time (packs, ..., lanes, 2).

    A computed one (`te/matmul.py`) has one at a time, and the axes of a batch before these. Rows and columns are those
    of a window, of Winograd's tiles or Strassen's factors.
    """

    region: tirx.BufferRegion
    """what the block reads of it"""

    @property
    def buffer(self) -> tirx.Buffer:
        """The whole weight."""
        return self.region.source

    @property
    def packs(self) -> int:
        """Packs of output channels, of a batch's all together."""
        return math.prod(int(size) for size in self.buffer.shape[: self._last + 1 - 4])

    @property
    def steps(self) -> int:
        """Steps of the sum over input channels."""
        return int(self.buffer.shape[self._last - 1])

    @property
    def lanes(self) -> int:
        """Output channels side by side in a pack."""
        return int(self.buffer.shape[self._last])

    @property
    def _last(self) -> int:
        """The axis of lanes."""
        return len(self.buffer.shape) - (2 if self.values > 1 else 1)

    @property
    def values(self) -> int:
        """Input channels of a step that lie side by side, for dot products."""
        last = int(self.buffer.shape[-1])
        if str(self.buffer.dtype) == "int8":
            return last if len(self.buffer.shape) == 6 else 1
        return 2 if last == 2 else 1  # a vector has more lanes

    @property
    def pack_bytes(self) -> int:
        """Bytes of a pack."""
        return total_bytes(self.buffer) // self.packs

    def vector(self, target: tvm.target.Target) -> int:
        """Return how many output channels a vector of a CPU takes."""
        return largest_divisor(self.lanes, vector_bytes(target) // 4)

    def vectors(self, target: tvm.target.Target) -> int:
        """Return the vectors of a pack."""
        return self.lanes // self.vector(target)


def packed_weight(block: s_tir.SBlock) -> PackedWeight:
    """Return the weight that a block of products reads, the last of what it reads."""
    return PackedWeight(block.reads[-1])
