# SPDX-License-Identifier: Apache-2.0
"""What figures were measured on and with."""

from __future__ import annotations

import datetime
import platform

from .. import __version__
from ..runtime.machine import cpu_flags, cpu_name
from ..runtime.threads import physical_cores


def describe_machine(threads: int) -> dict[str, str | int]:
    """Return CPU, cores, threads used, Python, this package's version and the date."""
    flags = cpu_flags()
    return {
        "cpu": cpu_name(),
        "isa": "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else platform.machine(),
        "cores": physical_cores(),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "tvm-involution": __version__,
        "date": datetime.date.today().isoformat(),
    }
