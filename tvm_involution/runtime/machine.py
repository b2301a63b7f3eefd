# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can run code that was made for another."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from pathlib import Path

_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


def architecture(triple: str | None = None) -> str:
    """Return the architecture of an LLVM triple, of this machine by default, by one name for each."""
    name = triple.split("-", 1)[0] if triple else platform.machine().lower()
    return _NAMES.get(name, name)


def missing_features(wanted: Iterable[str]) -> list[str]:
    """Return those of `wanted`, in the words of /proc/cpuinfo, that this CPU lacks; none where /proc does not say."""
    flags = _cpu_flags()
    return [feature for feature in wanted if feature not in flags] if flags else []


def _cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()
