# SPDX-License-Identifier: Apache-2.0
"""Interpolation of pictures that Relax has whole; torch decomposes the other modes into indices and weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import relax

from .operation import Operation


def is_plain(x: torch.Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> bool:
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


def bilinear(
    operation: Operation, x: relax.Expr, _: Sequence[int] | None, align_corners: bool, __: Sequence[float] | None
) -> relax.Expr:
    """`resize2d`."""
    mode = "align_corners" if align_corners else "half_pixel"
    return relax.op.image.resize2d(
        x, operation.shape[2:], layout="NCHW", method="linear", coordinate_transformation_mode=mode
    )
