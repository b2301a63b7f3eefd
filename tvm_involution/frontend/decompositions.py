# SPDX-License-Identifier: Apache-2.0
"""Which operators torch takes apart before they are imported, and which stay whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import global_decomposition_table

from .conversions.interpolation import is_plain
from .taken_apart import TAKEN_APART

_ATEN = torch.ops.aten
# what Relax has whole, a pass of ours folds, or a converter of ours does better
_KEPT = (
    _ATEN.batch_norm.default,
    _ATEN.adaptive_avg_pool2d.default,
    _ATEN.col2im.default,
    _ATEN.im2col.default,
    _ATEN.sinc.default,
)
# of numbers; of bytes torch rounds
_INTERPOLATIONS = (_ATEN.upsample_bilinear2d, _ATEN.upsample_bicubic2d)
_ANTIALIASED = (_ATEN._upsample_bilinear2d_aa, _ATEN._upsample_bicubic2d_aa, _ATEN._upsample_lanczos2d_aa)
# what torch can take apart, but takes for core
_ALSO = (
    _ATEN._batch_norm_with_update_functional.default,
    _ATEN._native_batch_norm_legit_functional.default,
    _ATEN.addmv.default,
    _ATEN.as_strided_copy.default,
    _ATEN.dist.default,
    _ATEN.grid_sampler_2d.default,
    _ATEN.ldexp.Tensor,
    _ATEN.lcm.default,
    _ATEN.linalg_vector_norm.default,
    _ATEN.narrow_copy.default,
    _ATEN.permute_copy.default,
    _ATEN.unbind_copy.int,
    _ATEN.view_copy.default,
)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return torch's default decompositions, without those of what stays whole and with some more."""
    table, more = torch.export.default_decompositions(), global_decomposition_table["post_autograd"]
    for operator in _KEPT:
        table.pop(operator, None)
    for interpolation in _ANTIALIASED:
        table.pop(interpolation.vec, None)
    for interpolation in _INTERPOLATIONS:
        table[interpolation.vec] = _of_bytes(more[interpolation.vec])
    # what Relax has whole only where pixels lie where the two sizes say
    table[_ATEN.upsample_nearest2d.vec] = _unless_plain(more[_ATEN.upsample_nearest2d.vec])
    for operator in _ALSO:
        table[operator] = more[operator]
    # a union would be a plain dictionary, without what torch's table adds when it is read
    table.update(TAKEN_APART)
    return table


def _unless_plain(decomposition: Callable[..., Any]) -> Callable[..., Any]:
    def decompose(x: torch.Tensor, output_size: Any, scale_factors: Any) -> Any:
        return NotImplemented if is_plain(x, scale_factors) else decomposition(x, output_size, scale_factors)

    return decompose


def _of_bytes(decomposition: Callable[..., Any]) -> Callable[..., Any]:
    def decompose(x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        return NotImplemented if x.is_floating_point() else decomposition(x, *arguments, **named)

    return decompose
