# SPDX-License-Identifier: Apache-2.0
"""What the machine can do at most, and the time that bytes and operations take at that rate."""

from __future__ import annotations

from dataclasses import dataclass

from .results import Results


@dataclass(frozen=True)
class Roofs:
    """The roofs that step `machine` has measured; None where one is missing."""

    gbs: float | None
    """billion bytes a second that a copy reads and writes"""
    tflops: float | None
    """trillion operations a second of a large matrix product in the precision"""

    def floor_us(self, bytes: int, operations: int) -> float | None:
        """Return the least microseconds for that many bytes and operations, None without roofs."""
        if self.gbs is None or self.tflops is None:
            return None
        return max(bytes / self.gbs / 1e3, operations / self.tflops / 1e6)


def read_roofs(results: Results, precision: str) -> Roofs:
    """Return the roofs of a precision."""
    copy, product = results.row("machine", roof="copy"), results.row("machine", roof=precision)
    return Roofs(copy and copy["gbs"], product and product["tflops"])
