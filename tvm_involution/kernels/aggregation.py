# SPDX-License-Identifier: Apache-2.0
"""Which involution a kernel is for: its sizes, its dtype and how its tensors lie in memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

OPERATORS = ("involution", "grad_input", "grad_kernel")
"""what is computed: the output of x and the kernel; of the output's gradient and the kernel that by x; of the output's
gradient and x that by the kernel"""
FUNCTION = "kernel"
"""the function of a compiled kernel's shared object"""


@dataclass(frozen=True)
class Aggregation:
    """The sizes of an involution; tuples have a number for each of its two or three spatial axes."""

    batch: int
    channels: int
    groups: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    dtype: str
    """of all tensors: float32, float16 or bfloat16; sums are kept in float32"""
    channels_last: bool
    """x, the output and their gradients are (N, *size, C) in memory, kernels (N, *out_size, G, *kernel_size); else
    (N, C, *size) and (N, G, *kernel_size, *out_size)"""

    @property
    def out_size(self) -> tuple[int, ...]:
        """The output's size along each axis."""
        axes = zip(self.size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((size + 2 * pad - step * (taps - 1) - 1) // moved + 1 for size, taps, moved, pad, step in axes)

    @property
    def group_channels(self) -> int:
        """Channels that share a kernel."""
        return self.channels // self.groups

    @property
    def taps(self) -> int:
        """Kernel values of a pixel and group."""
        return math.prod(self.kernel_size)

    @property
    def multiply_adds(self) -> int:
        """Of the output; of each gradient as many."""
        return self.batch * self.channels * self.taps * math.prod(self.out_size)

    def feature_shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape in memory of a feature map of this `size`: `self.size` of x, `out_size` of the output."""
        if self.channels_last:
            return (self.batch, *size, self.channels)
        return (self.batch, self.channels, *size)

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """The kernel's shape in memory."""
        if self.channels_last:
            return (self.batch, *self.out_size, self.groups, *self.kernel_size)
        return (self.batch, self.groups, *self.kernel_size, *self.out_size)

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Aggregation:
        """Return what `to_json` wrote."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)
