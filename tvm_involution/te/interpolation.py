# SPDX-License-Identifier: Apache-2.0
"""Interpolation of pictures, along rows and then along columns: each number is a weighted sum of a few.

Which numbers, and by which weights, is known at compile time, so every method and size is the same program.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import te, tirx

from .accumulate import accumulator_dtype
from .blocks import Block

_Filter = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Taps:
    """What the outputs along an axis are made of."""

    places: np.ndarray
    """(outputs, taps), int32: in the input"""
    weights: np.ndarray
    """(outputs, taps), float64"""


def interpolation_taps(
    method: str, size: int, out: int, scale: float | None, align_corners: bool, antialias: bool
) -> Taps:
    """Return what torch's `interpolate` makes `out` numbers of `size` of.

    Args:
        method: `linear` or `cubic`; with `antialias` `lanczos`, too.
        scale: out / size as the user said it; None where the sizes say it.
        align_corners: the middles of the outermost pixels lie on each other, not their borders.
        antialias: filter out what a smaller picture cannot show.
    """
    between_corners = (size - 1) / (out - 1) if out > 1 else 0.0
    step = between_corners if align_corners else 1 / (scale or out / size)
    outputs = np.arange(out)
    if antialias:
        return _filtered(method, size, step, outputs)
    at = outputs * step if align_corners else (outputs + 0.5) * step - 0.5
    at = np.maximum(at, 0) if method == "linear" else at
    first = np.minimum(np.floor(at), size - 1)
    part = np.clip(at - first, 0, 1)
    around = np.arange(2) if method == "linear" else np.arange(-1, 3)
    weights = _FILTERS[method](part[:, None] - around)
    return Taps(np.clip(first[:, None] + around, 0, size - 1).astype(np.int32), weights)


def _filtered(method: str, size: int, step: float, outputs: np.ndarray) -> Taps:
    """Return taps whose filter is as wide as what an output stands for."""
    width = max(step, 1.0)
    support = _SUPPORTS[method] * width
    middles = step * (outputs + 0.5)
    first = np.maximum(np.trunc(middles - support + 0.5), 0)
    count = np.minimum(np.trunc(middles + support + 0.5), size) - first
    count = np.clip(count, 0, 2 * math.ceil(support) + 1)[:, None]
    around = np.arange(int(count.max()))
    weights = _ANTIALIAS_FILTERS[method]((first[:, None] + around - middles[:, None] + 0.5) / width)
    weights = np.where(around < count, weights, 0.0)
    places = first[:, None] + np.minimum(around, count - 1)
    return Taps(places.astype(np.int32), weights / weights.sum(1, keepdims=True))


def _linear(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(alpha: float, distance: np.ndarray) -> np.ndarray:
    """Cubic convolution (Keys 1981)."""
    d = np.abs(distance)
    near = ((alpha + 2) * d - (alpha + 3)) * d * d + 1
    far = (((d - 5) * d + 8) * d - 4) * alpha
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _lanczos(distance: np.ndarray) -> np.ndarray:
    return np.where(np.abs(distance) < 3, np.sinc(distance) * np.sinc(distance / 3), 0.0)


_FILTERS: dict[str, _Filter] = {"linear": _linear, "cubic": functools.partial(_cubic, -0.75)}
# torch takes another alpha there, as Pillow does
_ANTIALIAS_FILTERS: dict[str, _Filter] = {
    "linear": _linear,
    "cubic": functools.partial(_cubic, -0.5),
    "lanczos": _lanczos,
}
_SUPPORTS = {"linear": 1, "cubic": 2, "lanczos": 3}


def interpolate2d(
    x: te.Tensor,
    row_places: te.Tensor,
    row_weights: te.Tensor,
    column_places: te.Tensor,
    column_weights: te.Tensor,
    layout: str = "NHWC",
) -> te.Tensor:
    """Interpolate along rows, then along columns; sums are kept in float32 for the half types.

    Args:
        x: (N, H, W, C) or (N, C, H, W), as `layout` says.
        row_places, row_weights: (OH, taps), from `interpolation_taps`.
        column_places, column_weights: (OW, taps).

    Returns:
        (N, OH, OW, C) or (N, C, OH, OW) in x's type. Blocks: `interpolate_rows`, `interpolate`.
    """
    dtype = accumulator_dtype(x.dtype)
    middle = _along(x, layout.index("H"), row_places, row_weights, dtype, Block.INTERPOLATE_ROWS)
    return _along(middle, layout.index("W"), column_places, column_weights, dtype, Block.INTERPOLATE, str(x.dtype))


def _along(
    x: te.Tensor, axis: int, places: te.Tensor, weights: te.Tensor, dtype: str, name: str, result: str | None = None
) -> te.Tensor:
    outputs, taps = (int(d) for d in places.shape)
    last = tirx.const(int(x.shape[axis]) - 1, "int32")

    def value(*index):
        at = index[axis]
        # without the limits, which the places keep, a schedule would not know what is read
        read = [tirx.max(tirx.min(places[at, tap], last), 0) for tap in range(taps)]
        terms = [
            x(*index[:axis], place, *index[axis + 1 :]).astype(dtype) * weights[at, tap]
            for tap, place in enumerate(read)
        ]
        return functools.reduce(operator.add, terms).astype(result or dtype)

    return te.compute((*x.shape[:axis], outputs, *x.shape[axis + 1 :]), value, name=name)
