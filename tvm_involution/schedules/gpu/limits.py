# SPDX-License-Identifier: Apache-2.0
"""What a block of threads may use, read from the target."""

from __future__ import annotations

import re

import tvm

# every CUDA GPU gives a block at least these
_SHARED_BYTES, _THREADS, _WARP = 48 << 10, 1024, 32


def shared_bytes(target: tvm.target.Target) -> int:
    """Return how much statically declared shared memory a block may use."""
    return min(int(target.attrs.get("max_shared_memory_per_block", _SHARED_BYTES)), _SHARED_BYTES)


def max_threads(target: tvm.target.Target) -> int:
    """Return how many threads a block may have."""
    return int(target.attrs.get("max_num_threads", _THREADS))


def warp_size(target: tvm.target.Target) -> int:
    """Return the number of threads that share an instruction."""
    return int(target.attrs.get("thread_warp_size", _WARP))


def compute_capability(target: tvm.target.Target) -> int:
    """Return the architecture as a number, 90 for `sm_90a`."""
    found = re.match(r"sm_(\d+)", str(target.attrs.get("arch", "")))
    return int(found.group(1)) if found else 50


def vector_bytes(target: tvm.target.Target, dtype: str) -> int:
    """Return the bytes of the widest vector that a thread loads, computes and stores.

    Before 8.0 bfloat16 is computed by integers, and TVM 0.27 writes constants of eight integers in a way that CUDA does
    not know.
    """
    return 8 if dtype == "bfloat16" and compute_capability(target) < 80 else 16
