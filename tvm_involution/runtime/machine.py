# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run code that was made for another."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

from .amx_permission import tiles_are_granted

_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def architecture(triple: str | None = None) -> str:
    """Return the architecture of an LLVM triple, of this machine by default, by one name for each."""
    name = triple.split("-", 1)[0] if triple else platform.machine().lower()
    return _NAMES.get(name, name)


def cpu_name() -> str:
    """Return this machine's CPU as its vendor calls it; the architecture where /proc does not say."""
    return _cpuinfo("model name") or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the features of this CPU in the words of /proc/cpuinfo; none where /proc does not say.

    Without AMX's where this process may not use its tiles.
    """
    # by architecture: emulators of user programs may show the host's file
    flags = frozenset(_cpuinfo("Features" if architecture() == "aarch64" else "flags").split())
    if "amx_tile" in flags and not tiles_are_granted():
        return frozenset(flag for flag in flags if not flag.startswith("amx_"))
    return flags


def missing_features(wanted: Iterable[str]) -> list[str]:
    """Return those of `wanted`, in the words of /proc/cpuinfo, that this CPU lacks; none where /proc does not say."""
    flags = cpu_flags()
    return [feature for feature in wanted if feature not in flags] if flags else []


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
