# SPDX-License-Identifier: Apache-2.0
"""How large the buffers of tensor programs are."""

from __future__ import annotations

import math

import tvm
from tvm import tirx


def element_bytes(buffer: tirx.Buffer) -> int:
    """Return the bytes of an element."""
    return tvm.DataType(str(buffer.dtype)).bits // 8


def total_bytes(buffer: tirx.Buffer) -> int:
    """Return the bytes of a buffer of constant shape."""
    return math.prod(int(size) for size in buffer.shape) * element_bytes(buffer)
