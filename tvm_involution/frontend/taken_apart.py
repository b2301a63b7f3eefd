# SPDX-License-Identifier: Apache-2.0
"""Operators of torch in terms of others of torch, which torch itself has only whole.

torch does not take apart again what is called here, so only operators that have a converter are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def running_extreme(later_wins: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `cummax` or `cummin`: in each step every place is joined with one twice as far before it.

    Args:
        later_wins: `ge` or `le`; of equal values the later one's place comes out, and NaN stays.
    """

    def decompose(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if not x.dim():
            return x.clone(), torch.zeros((), dtype=torch.int64, device=x.device)
        dim %= x.dim()
        size = x.shape[dim]
        along = [-1 if axis == dim else 1 for axis in range(x.dim())]
        places = torch.arange(size, device=x.device).reshape(along).expand(x.shape)
        values, distance = x, 1
        while distance < size:
            before, place_before = (t.narrow(dim, 0, size - distance) for t in (values, places))
            now, place_now = (t.narrow(dim, distance, size - distance) for t in (values, places))
            keep = later_wins(now, before)
            if x.is_floating_point():
                keep = keep.logical_or(now.isnan())
            joined, place = torch.where(keep, now, before), torch.where(keep, place_now, place_before)
            values = torch.cat((values.narrow(dim, 0, distance), joined), dim)
            places = torch.cat((places.narrow(dim, 0, distance), place), dim)
            distance *= 2
        return values.clone(), places.clone()

    return decompose


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_embedding_bag`: rows of `weight`, added up (mode 0), averaged (1) or compared (2) bag by bag."""
    offsets = offsets[:-1] if include_last_offset else offsets
    bags, width = offsets.shape[0], weight.shape[1]
    rows = torch.nn.functional.embedding(indices, weight)
    # an index belongs to the last bag that begins at or before it
    number = torch.arange(indices.shape[0], dtype=offsets.dtype, device=offsets.device)
    bag = (number[:, None] >= offsets).sum(1) - 1
    counts = torch.full_like(indices, 1) if padding_idx < 0 else (indices != padding_idx).to(indices.dtype)
    there = counts[:, None] > 0
    size = torch.zeros(bags, dtype=indices.dtype, device=indices.device).index_add(0, bag, counts)
    if mode == 2:
        rows = torch.where(there, rows, rows.new_full((), float("-inf")))
        found = weight.new_full((bags, width), float("-inf"))
        found = found.scatter_reduce(0, bag[:, None].expand(-1, width), rows, "amax")
        found = torch.where(size[:, None] > 0, found, found.new_zeros(()))
    else:
        if per_sample_weights is not None:
            rows = rows * per_sample_weights[:, None]
        rows = torch.where(there, rows, rows.new_zeros(()))
        found = weight.new_zeros(bags, width).index_add(0, bag, rows)
        if mode == 1:
            found = found / size.clamp(min=1)[:, None].to(found.dtype)
    places = indices.new_zeros((bags, width) if mode == 2 else (bags,))
    return found, bag.to(indices.dtype), size, places


def grid_sampler_3d(x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """`grid_sample` of volumes: the eight voxels around each point by their weights (mode 0), or the nearest (1)."""
    batch, channels, *sizes = x.shape
    points = [
        _on_axis(coordinates, size, padding_mode, align_corners)
        for coordinates, size in zip((grid.select(-1, axis) for axis in (2, 1, 0)), sizes, strict=True)
    ]
    flat, count = x.reshape(batch, channels, -1), points[0][0].numel()

    def voxels(corner: list[Tensor]) -> Tensor:
        """Return what x holds at a corner, zeros outside."""
        inside, place = None, None
        for at, size in zip(corner, sizes, strict=True):
            within = (at >= 0).logical_and(at < size)
            clamped = at.clamp(0, size - 1).to(torch.int64)
            inside = within if inside is None else inside.logical_and(within)
            place = clamped if place is None else place * size + clamped
        assert inside is not None and place is not None
        found = flat.gather(2, place.reshape(batch, 1, count).expand(-1, channels, -1))
        found = found.reshape(batch, channels, *place.shape[1:])
        return torch.where(inside.unsqueeze(1), found, found.new_zeros(()))

    if interpolation_mode == 1:
        return voxels([point.round() for point in points])
    total: Tensor | None = None
    floors = [point.floor() for point in points]
    for corner in itertools.product((0, 1), repeat=3):
        at = [floor + far for floor, far in zip(floors, corner, strict=True)]
        part = voxels(at)
        for point, floor, far in zip(points, floors, corner, strict=True):
            part = part * (point - floor if far else floor + 1 - point).unsqueeze(1)
        total = part if total is None else total + part
    assert total is not None
    return total


def _on_axis(coordinates: Tensor, size: int, padding_mode: int, align_corners: bool) -> Tensor:
    """Return -1 to 1 as places along an axis, moved inside where the padding says so (1: border, 2: reflection)."""
    if align_corners:
        place, low, high = (coordinates + 1) / 2 * (size - 1), 0.0, size - 1.0
    else:
        place, low, high = ((coordinates + 1) * size - 1) / 2, -0.5, size - 0.5
    if padding_mode == 2:
        length = high - low
        if not length:
            return torch.full_like(place, 0.0)
        away = (place - low).abs()
        turns = (away / length).floor()
        rest = away - turns * length
        place = torch.where(turns % 2 == 0, rest + low, -rest + high)
    return place.clamp(0, size - 1) if padding_mode else place


TAKEN_APART: dict[Any, Callable[..., Any]] = {
    _ATEN.cummax.default: running_extreme(torch.ge),
    _ATEN.cummin.default: running_extreme(torch.le),
    _ATEN._embedding_bag.default: embedding_bag,
    _ATEN._embedding_bag_forward_only.default: embedding_bag,
    _ATEN.grid_sampler_3d.default: grid_sampler_3d,
}
"""Operators of ATen -> functions of torch with the operator's arguments and results."""
