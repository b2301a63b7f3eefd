# SPDX-License-Identifier: Apache-2.0
"""Whether Linux lets this process use the tiles of Intel's AMX: it must be asked (kernel docs, arch/x86/xstate)."""

from __future__ import annotations

import ctypes
import functools

ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18
"""the system call's number on x86-64, ARCH_REQ_XCOMP_PERM, and the number of the state component"""


@functools.cache
def tiles_are_granted() -> bool:
    """Ask for the tiles, for all threads of this process and its children; return whether they may be used."""
    system_call = ctypes.CDLL(None).syscall
    system_call.restype = ctypes.c_long
    return bool(system_call(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)
