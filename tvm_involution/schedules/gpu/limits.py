# SPDX-License-Identifier: Apache-2.0
"""What a block of threads may use, read from the target; where it does not say, what its architecture has."""

from __future__ import annotations

import tvm

from ...compute_capability import (
    BLOCK_THREADS,
    REGISTERS,
    STATIC_SHARED_BYTES,
    WARP_THREADS,
)
from ...target import compute_capability


def shared_bytes(target: tvm.target.Target) -> int:
    """Return how much statically declared shared memory a block may use."""
    # some of TVM's tags give what a launch may ask for, which is more
    return min(int(target.attrs.get("max_shared_memory_per_block", STATIC_SHARED_BYTES)), STATIC_SHARED_BYTES)


def max_threads(target: tvm.target.Target) -> int:
    """Return how many threads a block may have."""
    return min(int(target.attrs.get(name, BLOCK_THREADS)) for name in ("max_num_threads", "max_threads_per_block"))


def registers(target: tvm.target.Target) -> int:
    """Return how many registers a block may have."""
    return int(target.attrs.get("registers_per_block", REGISTERS))


def warp_size(target: tvm.target.Target) -> int:
    """Return the number of threads that share an instruction."""
    return int(target.attrs.get("thread_warp_size", WARP_THREADS))


def copies_asynchronously(target: tvm.target.Target) -> bool:
    """Return whether threads may copy to shared memory without waiting (`cp.async`)."""
    return compute_capability(target) >= 80


def vector_bytes(target: tvm.target.Target, dtype: str) -> int:
    """Return the bytes of the widest vector that a thread loads, computes and stores.

    Before 8.0 bfloat16 is computed by integers, and TVM 0.27 writes constants of eight integers in a way that CUDA does
    not know.
    """
    return 8 if dtype == "bfloat16" and compute_capability(target) < 80 else 16
