# SPDX-License-Identifier: Apache-2.0
"""Interpolation of pictures; along one and three axes torch decomposes it into indices and weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import relax

from ...relax.operators.interpolation import interpolate2d
from .operation import Converter, Operation


def is_plain(x: torch.Tensor, scale_factors: Sequence[float] | None) -> bool:
    """Return whether pixels lie where the two sizes say, as in Relax; torch goes by the factors where it has them."""
    if scale_factors is None:
        return True
    return all(float(size * factor).is_integer() for size, factor in zip(x.shape[2:], scale_factors, strict=True))


def nearest(operation: Operation, x: relax.Expr, *_: object) -> relax.Expr:
    """`resize2d` that takes the pixel at or before, as torch does, not the nearest."""
    return relax.op.image.resize2d(
        x,
        operation.shape[2:],
        layout="NCHW",
        method="nearest_neighbor",
        coordinate_transformation_mode="asymmetric",
        rounding_method="floor",
    )


def by_factors(method: str, antialias: bool = False) -> Converter:
    """Return a converter of an overload `vec`, which names the factors of both axes, if any, in a list."""

    def convert(
        operation: Operation, x: relax.Expr, _: object, align_corners: bool, factors: Sequence[float] | None
    ) -> relax.Expr:
        return interpolate2d(x, operation.shape[2:], factors or (None, None), method, align_corners, antialias)

    return convert


def by_scales(method: str, antialias: bool) -> Converter:
    """Return a converter of an overload `default`, which names the factors one by one."""

    def convert(
        operation: Operation,
        x: relax.Expr,
        _: object,
        align_corners: bool,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> relax.Expr:
        return interpolate2d(x, operation.shape[2:], (scales_h, scales_w), method, align_corners, antialias)

    return convert
