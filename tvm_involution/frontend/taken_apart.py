# SPDX-License-Identifier: Apache-2.0
"""Operators of torch in terms of others of torch, which torch itself has only whole.

torch does not take apart again what is called here, so only operators that have a converter are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def randomized_leaky_relu(
    x: Tensor,
    noise: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """`rrelu_with_noise_functional` for inference, whose slope is the mean of the two; in training it is refused."""
    if training:  # draws random numbers
        return NotImplemented
    return torch.nn.functional.leaky_relu(x, (lower + upper) / 2), noise.clone()


def grid_sampler_3d(x: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Tensor:
    """`grid_sample` of volumes: the eight voxels around each point by their weights (mode 0), or the nearest (1).

    What belongs to an axis or a corner has an axis of its own, and is added or multiplied along it: written out for
    each, what says where the voxels lie would be repeated for all of them.
    """
    batch, channels, depth, height, width = x.shape
    count = grid.shape[1:4].numel()
    last = _row(grid, (width - 1, height - 1, depth - 1))
    point = _moved_inside(grid.reshape(batch, 1, count, 3), last, padding_mode, align_corners)
    if interpolation_mode == 1:
        corner, weight = point.round(), None
    else:
        floor = point.floor()
        numbers = torch.arange(8, device=grid.device).reshape(1, 8, 1, 1)
        far = numbers.div(_row(numbers, (1, 2, 4)), rounding_mode="floor").remainder(2).to(grid.dtype)
        corner, share = floor + far, point - floor
        weight = (far * share + (-far + 1) * (-share + 1)).prod(-1)
    inside = (corner >= 0).logical_and(corner <= last).all(-1).unsqueeze(1)
    steps = _row(grid, (1, width, width * height)).to(torch.int64)
    place = (corner.clamp(torch.full_like(last, 0.0), last).to(torch.int64) * steps).sum(-1)
    places = place.reshape(batch, 1, -1).expand(-1, channels, -1)
    found = x.reshape(batch, channels, -1).gather(2, places).reshape(batch, channels, -1, count)
    weighted = found if weight is None else found * weight.unsqueeze(1)
    return torch.where(inside, weighted, found.new_zeros(())).sum(2).reshape(batch, channels, *grid.shape[1:4])


def pad(x: Tensor, widths: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """`pad`: what is not filled with a number is taken from places along one axis after the other."""
    if mode == "constant":
        return torch.constant_pad_nd(x, widths, value or 0)
    for place, (before, behind) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        if not before and not behind:
            continue
        last = x.shape[-1 - place] - 1
        places = torch.arange(-before, last + behind + 1, device=x.device)
        if mode == "circular":  # around what is left where widths below zero crop
            first, left = max(-before, 0), last + 1 + min(before, 0) + min(behind, 0)
            places = (places - first).remainder(left) + first
        elif mode == "replicate":
            places = places.clamp(0, last)
        else:
            places = -(-places.abs() + last).abs() + last
        x = x.index_select(x.dim() - 1 - place, places)
    return x.clone()


def _row(like: Tensor, values: Sequence[float]) -> Tensor:
    """Return a vector of `values`, known at compile time, in the dtype of another tensor."""
    return torch.cat([like.new_full((1,), value) for value in values])


def _moved_inside(coordinates: Tensor, last: Tensor, padding_mode: int, align_corners: bool) -> Tensor:
    """Return -1 to 1 as places on axes that end at `last`, within where the padding says so (1: border, 2: reflection).

    Args:
        coordinates: (..., axes).
        last: (axes).
    """
    if align_corners:
        place, low, length = (coordinates + 1) / 2 * last, 0.0, last
    else:
        place, low, length = ((coordinates + 1) * (last + 1) - 1) / 2, -0.5, last + 1
    if padding_mode == 2:
        away = (place - low).abs()
        folded = away - (away / (2 * length)).floor() * (2 * length)
        folded = -(folded - length).abs() + (length + low)
        place = torch.where(length == 0, torch.full_like(folded, 0.0), folded)
    return place.clamp(torch.full_like(last, 0.0), last) if padding_mode else place


TAKEN_APART: dict[Any, Callable[..., Any]] = {
    _ATEN.cummax.default: running_extreme(torch.ge),
    _ATEN.cummin.default: running_extreme(torch.le),
    _ATEN._embedding_bag.default: embedding_bag,
    _ATEN._embedding_bag_forward_only.default: embedding_bag,
    _ATEN.rrelu_with_noise_functional.default: randomized_leaky_relu,
    _ATEN.grid_sampler_3d.default: grid_sampler_3d,
    _ATEN.pad.default: pad,
}
"""Operators of ATen -> functions of torch with the operator's arguments and results."""
