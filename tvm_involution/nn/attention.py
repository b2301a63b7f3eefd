# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as a PyTorch operator that `torch.export` keeps whole, and the layer that uses it.

An involution whose kernel is softmax(q k^T), with heads for groups (section 3.3 and the appendix of arXiv 2103.06255).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..arguments import Size, checked
from ..errors import UserError
from .ops import LIBRARY
from .plain_tensors import check_floating, check_plain

BORDERS = ("masked", "shifted", "zeros")
"""what becomes of a window at the border; see `local_attention2d`"""


@checked
def local_attention2d(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel_size: Size | Sequence[Size],
    num_heads: Size,
    dilation: Size | Sequence[Size] = 1,
    scale: float | None = None,
    bias: Tensor | None = None,
    embedding: Tensor | None = None,
    border: str = "masked",
) -> Tensor:
    """Attend from every pixel to the window around it.

    Args:
        query, key: (N, C, H, W), C a multiple of `num_heads`; head h owns the channels h*C/heads to (h+1)*C/heads. One
            floating dtype for all tensors; sums and softmax of the half types are kept in float32.
        value: (N, CV, H, W), CV a multiple of `num_heads` too.
        kernel_size, dilation: of the window, int or (rows, columns); odd sides.
        scale: factor of the query-key products; 1 / sqrt(C / num_heads) where it is None.
        bias: (heads, KH, KW), added to the scaled products by place in the window. Where windows are shifted
            (heads, 2*KH-1, 2*KW-1), by position relative to the pixel.
        embedding: (C, KH, KW), added to the keys by place in the window: the relative positions of arXiv 1906.05909.
            Not where windows are shifted.
        border: what becomes of windows that reach over the border. `masked`: positions outside take no part
            (stand-alone self-attention, arXiv 1906.05909). `shifted`: the window is moved inside (neighborhood
            attention, arXiv 2204.07143; dilated among every dilation-th pixel, arXiv 2209.15001). `zeros`: keys and
            values outside are zero, and take part, as an unfold with padding has them.

    Returns:
        (N, CV, H, W), differentiable by all tensors. Under autocast they are cast to its dtype first.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit, with what was expected and what came.
    """
    given = {"query": query, "key": key, "value": value, "bias": bias, "embedding": embedding}
    tensors = {name: tensor for name, tensor in given.items() if tensor is not None}
    check_plain("local_attention2d", **tensors)
    device = query.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast and query.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        query, key, value = (x.to(dtype) for x in (query, key, value))
        bias, embedding = (None if x is None else x.to(dtype) for x in (bias, embedding))
    check_floating("local_attention2d", query=query)
    _check_border(border)
    if scale is None:
        scale = max(query.shape[1] // num_heads, 1) ** -0.5 if query.dim() == 4 else 1.0
    sides = ([v] * 2 if isinstance(v, int) else list(v) for v in (kernel_size, dilation))
    return torch.ops.tvm_involution.local_attention2d(
        query, key, value, bias, embedding, num_heads, *sides, float(scale), border
    )


def check_local_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    embedding: Tensor | None,
    num_heads: int,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    border: str,
) -> None:
    """Check the arguments of the operator.

    Raises:
        UserError: see `local_attention2d`.
    """
    name = "local_attention2d"
    given = {"query": query, "key": key, "value": value, "bias": bias, "embedding": embedding}
    tensors = {key: tensor for key, tensor in given.items() if tensor is not None}
    check_plain(name, **tensors)
    check_floating(name, **tensors)
    for word, values in (("kernel_size", kernel_size), ("dilation", dilation)):
        if len(values) != 2 or min(values) < 1:
            raise UserError(f"{name}: {word} must be an int or a pair of at least 1, got {list(values)}")
    _check_border(border)
    if query.dim() != 4 or value.dim() != 4:
        raise UserError(
            f"{name} takes query and value of rank 4, (N, C, H, W), got {list(query.shape)} and {list(value.shape)}"
        )
    n, channels, height, width = query.shape
    if key.shape != query.shape or (value.shape[0], *value.shape[2:]) != (n, height, width):
        raise UserError(
            f"{name} takes query and key (N, C, H, W) and value (N, CV, H, W), got {list(query.shape)}, "
            f"{list(key.shape)} and {list(value.shape)}"
        )
    if num_heads < 1 or channels % num_heads or value.shape[1] % num_heads or any(k % 2 == 0 for k in kernel_size):
        raise UserError(
            f"{name} takes channels that are a multiple of num_heads and an odd kernel_size, got channels {channels} "
            f"and {value.shape[1]}, num_heads {num_heads}, kernel_size {list(kernel_size)}"
        )
    if border == "shifted":
        reach = [taps * step for taps, step in zip(kernel_size, dilation, strict=True)]
        if any(isinstance(size, int) and size < seen for size, seen in zip((height, width), reach, strict=True)):
            raise UserError(
                f"{name}: shifted windows of {reach[0]}x{reach[1]} pixels (kernel_size times dilation) must fit into "
                f"the image, got {height}x{width}; expected a smaller window, or border 'masked'"
            )
    sides = [2 * taps - 1 for taps in kernel_size] if border == "shifted" else list(kernel_size)
    for word, tensor, expected in (
        ("bias", bias, [num_heads, *sides]),
        ("embedding", embedding, [channels, *kernel_size]),
    ):
        if tensor is not None and list(tensor.shape) != expected:
            raise UserError(f"{name}: {word} must have shape {expected}, got {list(tensor.shape)}")
    if embedding is not None and border == "shifted":
        raise UserError(f"{name} takes no embedding where windows are shifted; use bias, or border 'masked'")


def _check_border(border: str) -> None:
    if border not in BORDERS:
        raise UserError(f"local_attention2d: border must be one of {', '.join(BORDERS)}, got {border!r}")


@dataclass(frozen=True)
class _Axis:
    """Which pixels the windows along an axis see; tensors (taps, size)."""

    seen: Tensor
    inside: Tensor
    """whether there is such a pixel; where not, `seen` is any"""
    place: Tensor
    """in the bias"""

    @staticmethod
    def of(size: int, taps: int, dilation: int, border: str, device: torch.device) -> _Axis:
        """Lay out the windows of `size` pixels."""
        pixel, tap = torch.arange(size, device=device), torch.arange(taps, device=device)[:, None]
        if border == "shifted":
            # every dilation-th pixel is a neighbour; those of one rest are a row of their own
            own, rest = pixel // dilation, pixel % dilation
            last = (size - rest + dilation - 1) // dilation - taps
            first = torch.minimum((own - taps // 2).clamp(min=0), last)
            seen = rest + (first + tap) * dilation
            return _Axis(seen, torch.ones_like(seen, dtype=torch.bool), first + tap - own + taps - 1)
        seen = pixel + (tap - taps // 2) * dilation
        inside = (seen >= 0) & (seen < size)
        return _Axis(seen.clamp(0, size - 1), inside, tap.expand(taps, size))


@dataclass(frozen=True)
class _Tap:
    """What all windows see at one place."""

    row: int
    column: int
    rows: Tensor
    columns: Tensor
    inside: Tensor
    """(H, W)"""
    place: tuple[Tensor, Tensor]
    """of the bias, (H, 1) and (1, W)"""

    def read(self, x: Tensor) -> Tensor:
        """Return what is seen of x (..., H, W), zeros outside."""
        seen = x.index_select(-2, self.rows).index_select(-1, self.columns)
        return seen.masked_fill(~self.inside, 0)

    def give_back(self, total: Tensor, grad: Tensor) -> None:
        """Add to `total` where `grad` was read."""
        grad = grad.masked_fill(~self.inside, 0)
        by_column = torch.zeros_like(total).index_add_(-1, self.columns, grad)
        total.index_add_(-2, self.rows, by_column)


def _taps(query: Tensor, kernel_size: Sequence[int], dilation: Sequence[int], border: str) -> Iterator[_Tap]:
    rows, columns = (
        _Axis.of(*each, border, query.device) for each in zip(query.shape[2:], kernel_size, dilation, strict=True)
    )
    for u, v in itertools.product(*map(range, kernel_size)):
        inside = rows.inside[u, :, None] & columns.inside[v]
        yield _Tap(u, v, rows.seen[u], columns.seen[v], inside, (rows.place[u, :, None], columns.place[v][None]))


def attention_weights(query, key, bias, embedding, num_heads, kernel_size, dilation, scale, border) -> Tensor:
    """Return the softmax (N, heads, taps, H, W); query and key (N, heads, C/heads, H, W) in the type of the sums."""
    n, heads, _, height, width = query.shape
    scores = query.new_empty(n, heads, kernel_size[0] * kernel_size[1], height, width)
    flat = query.flatten(1, 2)
    for number, tap in enumerate(_taps(flat, kernel_size, dilation, border)):
        seen = tap.read(key)
        if embedding is not None:
            seen = seen + embedding[:, tap.row, tap.column].view(heads, -1, 1, 1).to(seen.dtype)
        score = (query * seen).sum(2) * scale
        if bias is not None:
            rows, columns = tap.place
            score = score + bias[:, rows, columns].to(score.dtype)
        scores[:, :, number] = score if border == "zeros" else score.masked_fill(~tap.inside, float("-inf"))
    return scores.softmax(2)


def _by_heads(num_heads: int, *tensors: Tensor) -> list[Tensor]:
    """Return (N, C, H, W) as (N, heads, C/heads, H, W), in the type of the sums."""
    return [
        x.unflatten(1, (num_heads, x.shape[1] // num_heads)).to(torch.promote_types(x.dtype, torch.float32))
        for x in tensors
    ]


def _forward(query, key, value, bias, embedding, num_heads, kernel_size, dilation, scale, border) -> Tensor:
    """Go tap by tap: never holds the unfolded keys or values."""
    check_local_attention(query, key, value, bias, embedding, num_heads, kernel_size, dilation, border)
    q, k, v = _by_heads(num_heads, query, key, value)
    weights = attention_weights(q, k, bias, embedding, num_heads, kernel_size, dilation, scale, border)
    total = torch.zeros_like(v)
    for number, tap in enumerate(_taps(query, kernel_size, dilation, border)):
        total.addcmul_(weights[:, :, number, None], tap.read(v))
    return total.flatten(1, 2).to(query.dtype)


def _fake(query, key, value, bias, embedding, num_heads, kernel_size, dilation, scale, border) -> Tensor:
    check_local_attention(query, key, value, bias, embedding, num_heads, kernel_size, dilation, border)
    return value.new_empty(value.shape)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.num_heads, ctx.kernel_size, ctx.dilation, ctx.scale, ctx.border = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad: Tensor):
    query, key, value, bias, embedding = ctx.saved_tensors
    q, k, v, g = _by_heads(ctx.num_heads, query, key, value, grad)
    geometry = (ctx.kernel_size, ctx.dilation, ctx.border)
    weights = attention_weights(
        q, k, bias, embedding, ctx.num_heads, ctx.kernel_size, ctx.dilation, ctx.scale, ctx.border
    )
    grad_q, grad_k, grad_v = map(torch.zeros_like, (q, k, v))
    grad_bias, grad_embedding = (None if x is None else torch.zeros_like(x, dtype=q.dtype) for x in (bias, embedding))
    grad_weights = torch.empty_like(weights)
    for number, tap in enumerate(_taps(query, *geometry)):
        grad_weights[:, :, number] = (g * tap.read(v)).sum(2)
        tap.give_back(grad_v, g * weights[:, :, number, None])
    grad_scores = weights * (grad_weights - (weights * grad_weights).sum(2, keepdim=True))
    for number, tap in enumerate(_taps(query, *geometry)):
        grad_score = grad_scores[:, :, number]
        if grad_bias is not None:
            rows, columns = tap.place
            places = (rows * grad_bias.shape[2] + columns).flatten()
            grad_bias.flatten(1).index_add_(1, places, grad_score.sum(0).flatten(1))
        grad_score = grad_score.unsqueeze(2) * ctx.scale
        seen = tap.read(k)
        if grad_embedding is not None:
            seen = seen + embedding[:, tap.row, tap.column].view(ctx.num_heads, -1, 1, 1).to(seen.dtype)
            grad_embedding[:, tap.row, tap.column] = (grad_score * q).sum((0, 3, 4)).flatten()
        grad_q += grad_score * seen
        tap.give_back(grad_k, grad_score * q)
    return (
        *(x.flatten(1, 2).to(query.dtype) for x in (grad_q, grad_k, grad_v)),
        *(None if x is None else x.to(query.dtype) for x in (grad_bias, grad_embedding)),
        *(None,) * 5,
    )


LIBRARY.define(
    "local_attention2d(Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? embedding, SymInt num_heads, "
    "SymInt[] kernel_size, SymInt[] dilation, float scale, str border) -> Tensor"
)
for _key in ("CPU", "CUDA"):
    torch.library.impl(LIBRARY, "local_attention2d", _key)(_forward)
torch.library.register_fake("tvm_involution::local_attention2d", _fake, lib=LIBRARY)
torch.library.register_autograd(
    "tvm_involution::local_attention2d", _backward, setup_context=_setup_context, lib=LIBRARY
)


class LocalAttention2d(nn.Module):
    """Multi-head self-attention over the window around each pixel: (N, C, H, W) -> (N, `out_channels`, H, W).

    Queries, keys and values are 1x1 convolutions (`query`, `key`, `value`) without bias, as in arXiv 1906.05909.

    Args:
        channels: C.
        kernel_size: odd side of the window, or (rows, columns).
        num_heads: must divide `out_channels`.
        out_channels: of queries, keys and values; C where it is None.
        dilation: of the window.
        border: see `local_attention2d`.
        relative_position: what is learnt of the position in the window. `embedding`: a vector added to the keys, half
            of a head's channels by row and half by column (arXiv 1906.05909). `bias`: a number a head, added to the
            scores. `none`.

    Raises:
        UserError: channels that do not divide, an even window, or an embedding of shifted windows.
    """

    @checked
    def __init__(
        self,
        channels: Size,
        kernel_size: Size | Sequence[Size] = 7,
        num_heads: Size = 8,
        out_channels: Size | None = None,
        dilation: Size | Sequence[Size] = 1,
        border: str = "masked",
        relative_position: str = "embedding",
    ) -> None:
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        sides = (kernel_size,) * 2 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(sides) != 2 or any(side % 2 == 0 for side in sides):
            raise UserError(f"kernel_size must be an odd int or a pair of them, got {kernel_size!r}")
        if border not in BORDERS or relative_position not in ("embedding", "bias", "none"):
            raise UserError(
                f"border must be one of {', '.join(BORDERS)} and relative_position embedding, bias or none, got "
                f"{border!r} and {relative_position!r}"
            )
        if relative_position == "embedding" and border == "shifted":
            raise UserError("windows that are shifted take no embedding; use relative_position 'bias', or 'none'")
        # half of a head's channels say the row, half the column
        halves = 2 * num_heads if relative_position == "embedding" else num_heads
        if out_channels % halves:
            raise UserError(f"out_channels={out_channels} must be a multiple of {halves} for num_heads={num_heads}")
        self.kernel_size, self.num_heads, self.dilation, self.border = sides, num_heads, dilation, border
        self.query, self.key, self.value = (nn.Conv2d(channels, out_channels, 1, bias=False) for _ in range(3))
        self.row = self.column = self.bias = None
        if relative_position == "embedding":
            half = out_channels // halves
            self.row = nn.Parameter(torch.randn(num_heads, half, sides[0], 1))
            self.column = nn.Parameter(torch.randn(num_heads, half, 1, sides[1]))
        elif relative_position == "bias":
            shape = [2 * side - 1 for side in sides] if border == "shifted" else sides
            self.bias = nn.Parameter(torch.zeros(num_heads, *shape))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, `out_channels`, H, W)."""
        embedding = None
        if self.row is not None and self.column is not None:
            halves = [half.expand(-1, -1, *self.kernel_size) for half in (self.row, self.column)]
            embedding = torch.cat(halves, 1).flatten(0, 1)
        return local_attention2d(
            *(self.query(x), self.key(x), self.value(x), self.kernel_size, self.num_heads, self.dilation),
            bias=self.bias,
            embedding=embedding,
            border=self.border,
        )

    def extra_repr(self) -> str:
        """Show the arguments in `repr`."""
        return f"kernel_size={self.kernel_size}, num_heads={self.num_heads}, border={self.border!r}"
