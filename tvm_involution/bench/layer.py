# SPDX-License-Identifier: Apache-2.0
"""One kernel of our network, and all of them with the machine's peak beside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """A kernel: a fused tensor program of the compiled network."""

    kernel: str
    kind: str
    """involution, convolution, linear, pooling or elementwise"""
    shapes: tuple[tuple[int, ...], ...]
    """of the arguments, the output last"""
    calls: int
    """in one inference"""
    operations: int
    """of one call: a multiply-add is two"""
    bytes: int
    """of one call's arguments, each counted once"""
    microseconds: float
    """median of one call, among the other kernels in a running network"""
    schedule: str
    """where it came from: record, borrowed, rule or fallback"""
    rule: str
    """the rule's name, where there is one"""

    @property
    def total_us(self) -> float:
        """Microseconds of all calls of one inference."""
        return self.calls * self.microseconds

    @property
    def gflops(self) -> float:
        """Billion operations a second."""
        return self.operations / self.microseconds / 1e3

    @property
    def gbs(self) -> float:
        """Billion bytes a second."""
        return self.bytes / self.microseconds / 1e3


@dataclass(frozen=True)
class LayerTable:
    """The kernels of one inference, the one that takes longest first."""

    layers: tuple[Layer, ...]
    peak_gflops: float
    """of a large matrix product on this machine, in int8 for networks in int8, else in float32"""
    peak_gbs: float
    """of a large copy on this machine"""
    network_us: float
    """median of one inference with nothing watching its kernels, which lengthens them"""

    @property
    def total_us(self) -> float:
        """Microseconds of all kernels."""
        return sum(layer.total_us for layer in self.layers)

    @property
    def operations(self) -> int:
        """Operations of one inference."""
        return sum(layer.calls * layer.operations for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON holds it, with what the table shows beside what was measured."""
        return {
            "peak_gflops": self.peak_gflops,
            "peak_gbs": self.peak_gbs,
            "network_us": self.network_us,
            "layers": [
                {
                    **asdict(layer),
                    "gflops": layer.gflops,
                    "gbs": layer.gbs,
                    "share_of_peak_gflops": layer.gflops / self.peak_gflops,
                    "share_of_peak_gbs": layer.gbs / self.peak_gbs,
                    "share_of_total": layer.total_us / self.total_us,
                }
                for layer in self.layers
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> LayerTable:
        """Read what `to_json` returned."""
        names = Layer.__dataclass_fields__
        layers = tuple(
            Layer(**{**{k: v for k, v in row.items() if k in names}, "shapes": tuple(map(tuple, row["shapes"]))})
            for row in data["layers"]
        )
        return cls(layers, data["peak_gflops"], data["peak_gbs"], data["network_us"])
