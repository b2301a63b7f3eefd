# SPDX-License-Identifier: Apache-2.0
"""From numbers to bytes: the range that 0 to 255 stand for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

LEVELS = 255
LARGEST_WEIGHT = 127
# of the mean squared error: shares of the whole range that are tried
_SHARES = np.linspace(0.3, 0.98, 18)
_PERCENTILES = (99.99, 99.9)


@dataclass(frozen=True)
class Range:
    """What a tensor's bytes stand for: `scale * (byte - zero)`.

    Zero is a byte, so padding and ReLU lose nothing.
    """

    scale: float
    zero: int
    method: str = "minmax"
    """how it was found: `minmax`, `percentile` or `mse`"""

    @classmethod
    def of(cls, low: float, high: float, method: str = "minmax") -> Range:
        """Return the range that holds `low`, `high` and zero."""
        low, high = min(0.0, low), max(0.0, high)
        # a smaller one has no reciprocal in float32
        scale = float(np.float32((high - low) / LEVELS))
        scale = scale if scale >= np.finfo(np.float32).tiny else 1.0
        return cls(scale, int(np.rint(-low / scale)), method)

    def quantized(self, values: np.ndarray) -> np.ndarray:
        """Return the bytes for float32 `values`, computed as the compiled network does."""
        scaled = values.astype(np.float32) * np.float32(1 / self.scale)
        return (np.clip(scaled + np.float32(self.zero), 0, LEVELS) + np.float32(0.5)).astype(np.uint8)

    def restored(self, quantized: np.ndarray) -> np.ndarray:
        """Return the numbers that bytes stand for, in float32."""
        return (quantized.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)


def candidates(low: float, high: float, sample: np.ndarray) -> Iterator[Range]:
    """Yield ranges for values between `low` and `high`, of which `sample` are some: whole, percentiles, least error."""
    yield Range.of(low, high)
    for percentile in _PERCENTILES:
        inner_low, inner_high = np.percentile(sample, [100 - percentile, percentile])
        yield Range.of(max(low, float(inner_low)), min(high, float(inner_high)), "percentile")
    tried = [Range.of(low * share, high * share, "mse") for share in _SHARES]
    yield min(tried, key=lambda one: float(np.square(one.restored(one.quantized(sample)) - sample).mean()))


def quantized_weight(weight: np.ndarray, in_pairs: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight (O, I, ...) in int8 and the scale (O,) of each output channel in float32; zero is 0.

    Args:
        in_pairs: make such as `dot_int8.fits_pairs` accepts, by a larger scale: of two neighbouring input channels'
            weights of the same sign the sum counts, as one weight does otherwise. That costs about half a bit.
    """
    largest = np.abs(weight.reshape(len(weight), -1)).max(1)
    if in_pairs:
        wide = np.pad(weight, ((0, 0), (0, weight.shape[1] % 2), *[(0, 0)] * (weight.ndim - 2)))
        pairs = [np.maximum(part[:, ::2], 0) + np.maximum(part[:, 1::2], 0) for part in (wide, -wide)]
        # rounding adds a half to each of the two, and a pair may hold 128
        largest = np.maximum(largest, np.maximum(*pairs).reshape(len(weight), -1).max(1))
    scale = np.where(largest > 0, largest / LARGEST_WEIGHT, 1).astype(np.float32)
    whole = np.rint(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1)))
    return np.clip(whole, -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8), scale


def decibels(signal: np.ndarray, noise: np.ndarray) -> float:
    """Return the ratio of signal to noise, 10 log10(|signal|^2 / |noise|^2); at most 200."""
    power = float(np.square(signal, dtype=np.float64).sum())
    lost = float(np.square(noise, dtype=np.float64).sum())
    return 200.0 if lost <= 1e-20 * power else 10 * float(np.log10(power / lost)) if power else 0.0
