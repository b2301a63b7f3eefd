# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's architectures offer, and which of them runs code for which.

What a target does not say comes from here; the figures are those of the CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability".
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# the same on all of them
REGISTERS = 65536
"""of a multiprocessor, all of which a block may have"""
THREAD_REGISTERS = 255
BLOCK_THREADS = 1024
WARP_THREADS = 32
STATIC_SHARED_BYTES = 48 << 10
"""of a block, in arrays of a size that the source declares; more has to be asked for at the launch"""
RESERVED_SHARED_BYTES = 1 << 10
"""of each block, by the system from compute capability 8.0"""


@dataclass(frozen=True)
class Multiprocessor:
    """What the blocks that run on a multiprocessor at a time share."""

    shared_bytes: int
    threads: int
    blocks: int

    def resident_blocks(self, threads: int, registers: int, shared_bytes: int) -> int:
        """Return how many blocks run at a time.

        Args:
            threads: of a block.
            registers: of a thread.
            shared_bytes: of a block.
        """
        warps = -(-threads // WARP_THREADS)
        # registers are given to warps, 8 a thread at a time
        registers_of_block = -(-registers // 8) * 8 * WARP_THREADS * warps
        return min(
            REGISTERS // registers_of_block,
            self.shared_bytes // (shared_bytes + RESERVED_SHARED_BYTES),
            self.threads // (WARP_THREADS * warps),
            self.blocks,
        )


_MULTIPROCESSORS = {
    75: Multiprocessor(64 << 10, 1024, 16),
    80: Multiprocessor(164 << 10, 2048, 32),
    86: Multiprocessor(100 << 10, 1536, 16),
    87: Multiprocessor(164 << 10, 1536, 16),
    89: Multiprocessor(100 << 10, 1536, 24),
    90: Multiprocessor(228 << 10, 2048, 32),
    100: Multiprocessor(228 << 10, 2048, 32),
    103: Multiprocessor(228 << 10, 2048, 32),
    110: Multiprocessor(228 << 10, 1536, 24),
    120: Multiprocessor(100 << 10, 1536, 24),
}


def capability_of(architecture: str) -> int:
    """Return the compute capability times ten, 90 for `sm_90a`; 0 for what is no architecture."""
    found = re.fullmatch(r"sm_(\d+)[af]?", architecture)
    return int(found.group(1)) if found else 0


def multiprocessor(architecture: str) -> Multiprocessor:
    """Return the multiprocessor of `sm_86` and the like: of the newest known that is not newer, else of the oldest."""
    capability = capability_of(architecture)
    known = [number for number in _MULTIPROCESSORS if number <= capability]
    return _MULTIPROCESSORS[max(known, default=min(_MULTIPROCESSORS))]


def runs_on(architecture: str, device: str) -> bool:
    """Return whether a GPU of compute capability `device`, such as `8.6`, runs machine code for `architecture`.

    Code runs on its own major version from its minor version on; `sm_90a` on 9.0 alone.
    """
    own, minor = divmod(capability_of(architecture), 10)
    major, _, other = device.partition(".")
    if int(major) != own:
        return False
    return int(other) == minor if architecture.endswith("a") else int(other) >= minor
