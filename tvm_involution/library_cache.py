# SPDX-License-Identifier: Apache-2.0
"""A user's folder of compiled code that the next process takes: whose it must be, how large, what a name stands for."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

import tvm_involution

from .resources import user_dir
from .runtime.machine import cpu_flags, cpu_name
from .runtime.tvm_runtime import tvm_version

LARGEST = 4 << 30
"""bytes that a folder may take; beyond, what was not used for longest goes"""


def cache_folder(name: str) -> Path:
    """Return the user's folder `name` of compiled code: `$XDG_CACHE_HOME/tvm-involution/NAME`; it may not exist."""
    return user_dir("XDG_CACHE_HOME", ".cache") / name


def make_private(folder: Path) -> bool:
    """Make the folder where there is none; return whether nobody else can put a program into it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def prune(folder: Path) -> None:
    """Remove the libraries that were not used for longest, until the others take no more than `LARGEST` bytes."""
    files = sorted(folder.glob("*.so"), key=lambda file: file.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > LARGEST:
            file.unlink(missing_ok=True)


def cpu_words() -> list[str]:
    """Return what tells this CPU from others."""
    return [cpu_name(), " ".join(sorted(cpu_flags()))]


@functools.lru_cache(maxsize=1)
def compiler_words() -> tuple[str, ...]:
    """Return the versions of what compiles; of this package its files, too, which an editable installation changes."""
    folder = Path(tvm_involution.__file__).parent
    status = [(file.relative_to(folder), file.stat()) for file in sorted(folder.rglob("*.py"))]
    files = [f"{file} {s.st_size} {s.st_mtime_ns}" for file, s in status]
    return (tvm_version(), tvm_involution.__version__, *files)
