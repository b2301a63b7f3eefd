# SPDX-License-Identifier: Apache-2.0
"""Find involutions whose kernel is the softmax of query-key products: local self-attention.

Where the kernel of a recognised involution is made of one sum of products of two feature maps, these are proposed as
queries and keys. What the products are scaled with and what is added to them, scores or keys, by position shows in
kernels of chosen queries; whether it is local attention is decided on random numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ...nn.attention import attention_weights
from .forms import Fixed, Form, Node, Product, shape_of
from .region import Region
from .replacement import OPERATORS

_TOLERANCE = 1e-9
# sums of products that are looked at, and candidates for their queries and for their keys, the nearest of each
_PRODUCTS, _TRIED = 4, 2
# nodes among which they are looked for
_NODES = 64


@dataclass(frozen=True)
class Attention:
    """A local attention: see `nn.local_attention2d`; `bias` and `embedding` None where they change nothing."""

    num_heads: int
    kernel_size: tuple[int, int]
    dilation: tuple[int, int]
    scale: float
    border: str
    bias: np.ndarray | None
    embedding: np.ndarray | None


def proposals(kernel: Node, forms: dict[Node, Form]) -> Iterator[tuple[Node, Node]]:
    """Yield what may be queries and keys of which `kernel` (N, G, KH, KW, H, W) is the softmax."""
    heads, size = shape_of(kernel)[1], shape_of(kernel)[4:]

    def fits(node: Node) -> bool:
        shape = shape_of(node)
        return len(shape) == 4 and shape[2:] == size and shape[1] % heads == 0

    for product in _nearest(kernel, forms, lambda node: bool(_factors(node, forms)))[:_PRODUCTS]:
        sides = [_nearest(node, forms, fits)[:_TRIED] for node in _factors(product, forms)]
        pairs = itertools.product(range(_TRIED), range(_TRIED), (sides, sides[::-1]))
        for i, j, (queries, keys) in sorted(pairs, key=lambda pair: pair[0] + pair[1]):
            if i >= len(queries) or j >= len(keys) or queries[i] is keys[j]:
                continue
            if shape_of(queries[i]) == shape_of(keys[j]):
                yield queries[i], keys[j]


def attention_of(region: Region, dilation: tuple[int, int]) -> Attention | None:
    """Return which local attention `region`, of queries and keys to a kernel (N, G, KH, KW, H, W), is; None if none."""
    region.reduce_batch()
    if not region.fits:
        return None
    shape, sizes = region.resized(region.x), region.resized(region.result)
    try:
        with torch.no_grad():
            return _solve(region, shape, sizes, dilation)
    except RuntimeError:
        return None


def _solve(
    region: Region, shape: tuple[int, ...], sizes: tuple[int, ...], dilation: tuple[int, int]
) -> Attention | None:
    heads, height, width = sizes[1], *sizes[4:]
    taps = (sizes[2], sizes[3])
    channels = shape[1] // heads
    nothing = torch.zeros(*shape, dtype=torch.float64)
    plain = region(nothing, nothing)
    reach = [side // 2 * step for side, step in zip(taps, dilation, strict=True)]
    # pixels all of whose window lies inside
    middle = (..., slice(reach[0], height - reach[0]), slice(reach[1], width - reach[1]))
    inner = plain[middle]
    if inner.numel() == 0 or not bool((inner > 0).all()):
        return None
    border = "masked" if bool((plain == 0).any()) else "zeros"
    logits = inner.log()
    bias = _centred(logits)[0, ..., 0, 0]

    # queries that tell a channel of each head, another at each pixel, with keys of nothing: what is added to keys
    rows, columns = inner.shape[-2:]
    vectors = torch.zeros(channels, heads, *taps, dtype=torch.float64)
    for first in range(0, channels, rows * columns):
        told = torch.arange(rows * columns).view(rows, columns) + first
        query = nothing.clone().view(shape[0], heads, channels, height, width)
        seen = torch.nn.functional.one_hot(told.clamp(max=channels - 1), channels).permute(2, 0, 1)
        query[middle] = seen.double()
        change = _centred(region(query.view(shape), nothing)[middle].log() - logits)[0]
        for channel in range(first, min(first + rows * columns, channels)):
            vectors[channel] = change[..., (channel - first) // columns, (channel - first) % columns]

    # a channel of the queries times one of the keys: the scale
    random = torch.Generator().manual_seed(0)
    key = torch.randn(*shape, dtype=torch.float64, generator=random)
    query = nothing.clone().view(shape[0], heads, channels, height, width)
    query[:, :, 0] = 1
    change = _centred(region(query.view(shape), key)[middle].log() - logits - vectors[0, None, ..., None, None])
    by_head = (shape[0], heads, channels, height, width)

    def weights(
        query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, embedding: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        positions = (query.view(by_head), key.view(by_head), bias, embedding)
        return attention_weights(*positions, heads, taps, dilation, scale, border).view(sizes)

    unit = _centred(weights(query, key, None, None, 1.0)[middle].log())
    scale = float((change * unit).sum() / (unit * unit).sum())
    if not np.isfinite(scale) or scale == 0:
        return None
    embedding = (vectors / scale).transpose(0, 1).flatten(0, 1)
    found = Attention(
        heads,
        taps,
        dilation,
        scale,
        border,
        bias.numpy() if bool(bias.abs().max() > _TOLERANCE) else None,
        embedding.numpy() if bool(embedding.abs().max() > _TOLERANCE) else None,
    )
    for _ in range(2):
        query, key = (torch.randn(*shape, dtype=torch.float64, generator=random) for _ in range(2))
        added = None if found.bias is None else bias
        position = None if found.embedding is None else embedding
        if not bool((region(query, key) - weights(query, key, added, position, scale)).abs().max() <= _TOLERANCE):
            return None
    return found


def _centred(logits: torch.Tensor) -> torch.Tensor:
    """Return logits (N, G, KH, KW, ...) less their mean over the window, which no softmax sees."""
    return logits - logits.mean((2, 3), keepdim=True)


def _factors(node: Node, forms: dict[Node, Form]) -> tuple[Node, ...]:
    """Return the two tensors that `node` sums products of, at their last movement; () where it is no such sum."""
    form = forms.get(node)
    if isinstance(form, Product):
        return form.paths[0][-1], form.paths[1][-1]
    # a sum over channels may be an involution of another number of axes
    return tuple(node.args[:2]) if node.target in OPERATORS.values() else ()


def _nearest(start: Node, forms: dict[Node, Form], wanted: Callable[[Node], bool]) -> list[Node]:
    """Return the nodes that are wanted among those that `start` is made of, the nearest first."""
    found, waiting = [], [start]
    for node in waiting:
        if wanted(node):
            found.append(node)
        sources = [source for source in node.all_input_nodes if forms.get(source) != Fixed()]
        waiting += [source for source in sources if source not in waiting][: _NODES - len(waiting)]
    return found
