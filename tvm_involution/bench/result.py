# SPDX-License-Identifier: Apache-2.0
"""What a comparison found out."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Result:
    """One contender on one network. What was not reached before a failure is None or empty."""

    network: str
    contender: str
    version: str
    settings: str
    dtype: str | None = None
    failure: str | None = None
    """why there are no times, in one line"""
    seconds: list[float] = field(default_factory=list)
    """every timed inference of a batch"""
    ratio: float | None = None
    """the median over that of our library on this network"""
    relative_error: float | None = None
    """||y - r|| / ||r|| against the reference's outputs"""
    build_s: float | None = None
    """compiling or exporting, once, ahead of time"""
    load_s: float | None = None
    """importing the library and loading the network"""
    first_result_s: float | None = None
    """the same and the first inference"""
    peak_memory_bytes: int | None = None
    """peak resident memory of the process, Python and numpy included"""
    size_bytes: int | None = None
    """of the files that are loaded"""

    @property
    def median_ms(self) -> float | None:
        """The median time of a batch in milliseconds."""
        return 1e3 * statistics.median(self.seconds) if self.seconds else None

    @property
    def min_ms(self) -> float | None:
        """The least time of a batch in milliseconds."""
        return 1e3 * min(self.seconds) if self.seconds else None

    def to_json(self) -> dict[str, Any]:
        """Return the fields, with the median and the minimum."""
        return {**asdict(self), "median_ms": self.median_ms, "min_ms": self.min_ms}


@dataclass(frozen=True)
class Comparison:
    """All results of one run and what they were measured on and with."""

    machine: dict[str, str | int]
    settings: dict[str, Any]
    """batch, image_size, dtype, rounds and calls"""
    results: list[Result]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON holds it."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "results": [result.to_json() for result in self.results],
        }

    def title(self) -> str:
        """Return the conditions in one line."""
        size = " ".join("x".join(str(d) for d in shape[1:]) for shape in self.settings["input_shapes"])
        return (
            f"{self.machine['cpu']} ({self.machine['isa']}), {self.machine['threads']} threads, batch "
            f"{self.settings['batch']}, {size}, {self.settings['dtype']}"
        )
