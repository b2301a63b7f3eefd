# SPDX-License-Identifier: Apache-2.0
"""What figures were measured on and with."""

from __future__ import annotations

import datetime
import platform
from pathlib import Path

from .. import __version__
from ..runtime.threads import physical_cores


def describe_machine(threads: int) -> dict[str, str | int]:
    """Return CPU, cores, threads used, Python, this package's version and the date."""
    flags = _cpuinfo("flags").split()
    return {
        "cpu": _cpuinfo("model name") or platform.machine(),
        "isa": "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine(),
        "cores": physical_cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "tvm-involution": __version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
