# SPDX-License-Identifier: Apache-2.0
"""Local self-attention as an expression: scores, softmax and aggregation of the window around each pixel.

Self-attention over a window is an involution whose kernel is generated from query-key relations instead of a single
pixel, with heads as groups (section 3.3 and the appendix of arXiv 2103.06255). The kernel stays without its softmax's
denominator, by which the sum is divided; so a schedule may keep it in a cache, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .accumulate import accumulator_dtype
from .blocks import Block
from .checks import Pair, as_pair, check_groups, check_layout, check_rank, check_same_dtype, check_shape, shape_text
from .involution import pad_space

BORDERS = ("masked", "shifted", "zeros")
"""positions outside take no part; windows are moved inside; keys and values outside are zero"""


@checked
def local_attention2d(
    query: te.Tensor,
    key: te.Tensor,
    value: te.Tensor,
    kernel_size: Pair,
    num_heads: int,
    dilation: Pair = 1,
    scale: float | None = None,
    layout: str = "NCHW",
    bias: te.Tensor | None = None,
    embedding: te.Tensor | None = None,
    border: str = "masked",
    lanes: Size = 1,
) -> te.Tensor:
    """Attend from every pixel to the window around it, as `nn.local_attention2d` does.

    Args:
        query, key: (N, C, H, W), in layout NHWC (N, H, W, C); head h owns the channels h*C/heads to (h+1)*C/heads.
        value: (N, CV, H, W), in NHWC (N, H, W, CV); CV a multiple of `num_heads` too.
        kernel_size: odd (KH, KW), centred on the pixel.
        dilation: of the window.
        scale: factor of the products, 1/sqrt(C/heads) by default.
        bias: (heads, KH, KW), where windows are shifted (heads, 2*KH-1, 2*KW-1); added to the scaled products.
        embedding: (C, KH, KW), added to the keys; not where windows are shifted.
        border: `masked`, `shifted` or `zeros`.
        lanes: pixels of a row whose scores lie beside each other, for vectors; a row's last may be no pixels.

    Returns:
        (N, CV, H, W), in NHWC (N, H, W, CV), of the inputs' dtype; sums and softmax of the half types in float32.
        Blocks: `queries`, `keys`, `relation`, `scores`, `relation_max`, `relation_exp`, `relation_sum`, `pad_temp` and
        `values` where there are such, `attention`, `attention_out`.

    Raises:
        UserError: shapes, dtypes or arguments that do not fit.
    """
    check_layout(layout, 2)
    check_rank("query", query, 4)
    check_rank("value", value, 4)
    check_shape("key", key, query.shape)
    axis = layout.index("C")
    check_shape("value", value, [*query.shape[:axis], value.shape[axis], *query.shape[axis + 1 :]])
    others = {name: x for name, x in (("bias", bias), ("embedding", embedding)) if x is not None}
    check_same_dtype(query=query, key=key, value=value, **others)
    n, channels, height, width = (query.shape[layout.index(dim)] for dim in "NCHW")
    check_groups("query", query, channels, num_heads)
    check_groups("value", value, value.shape[axis], num_heads)
    taps, steps = as_pair("kernel_size", kernel_size, 1), as_pair("dilation", dilation, 1)
    if border not in BORDERS:
        raise UserError(f"local_attention2d: border must be one of {', '.join(BORDERS)}, got {border!r}")
    if any(side % 2 == 0 for side in taps):
        raise UserError(f"the window of local attention must be odd to be centred, got {taps[0]}x{taps[1]}")
    reach = [side // 2 * step for side, step in zip(taps, steps, strict=True)]
    if border == "shifted":
        reaches = zip((height, width), taps, steps, strict=True)
        if any(isinstance(size, tirx.IntImm) and int(size) < side * step for size, side, step in reaches):
            window = "x".join(str(side * step) for side, step in zip(taps, steps, strict=True))
            raise UserError(
                f"shifted windows of {window} pixels (kernel_size times dilation) must fit into the image, got query "
                f"{shape_text(query)}"
            )
        if embedding is not None:
            raise UserError("local_attention2d takes no embedding where windows are shifted")
    sides = [2 * side - 1 for side in taps] if border == "shifted" else list(taps)
    if bias is not None:
        check_shape("bias", bias, [num_heads, *sides])
    if embedding is not None:
        check_shape("embedding", embedding, [channels, *taps])

    dtype = accumulator_dtype(query.dtype)
    head, value_head = int(channels) // num_heads, int(value.shape[axis]) // num_heads
    factor = tirx.const(head**-0.5 if scale is None else scale, dtype)
    blocks = (width + lanes - 1) // lanes
    rows, columns = (_Axis(*each, border) for each in zip((height, width), taps, steps, strict=True))

    def read(tensor, b, channel, row, column):
        return tensor(b, channel, row, column) if layout == "NCHW" else tensor(b, row, column, channel)

    def query_at(b, i, channel, j):
        return tirx.if_then_else(j < width, read(query, b, channel, i, j).astype(dtype) * factor, tirx.const(0, dtype))

    def key_at(b, y, channel, x):
        row, column = y - reach[0], x - reach[1]
        inside = tirx.all(row >= 0, row < height, column >= 0, column < width)
        return tirx.if_then_else(inside, read(key, b, channel, row, column).astype(dtype), tirx.const(0, dtype))

    # rows of pixels beside each other, a row of each channel
    queries = te.compute((n, height, channels, blocks * lanes), query_at, name=Block.QUERIES)
    padded = (n, height + 2 * reach[0], channels, blocks * lanes + 2 * reach[1])
    keys = te.compute(padded, key_at, name=Block.KEYS)

    shape = (n, num_heads, height, blocks, *taps, lanes)
    c = te.reduce_axis((0, head), "c")

    def product(b, h, i, block, u, v, lane):
        channel, j = h * head + c, block * lanes + lane
        row = rows.seen(i, u) + reach[0]
        seen = columns.select(j, v, lanes, lambda column: keys[b, row, channel, column + reach[1]])
        if embedding is not None:
            seen = seen + embedding[channel, u, v].astype(dtype)
        return te.sum(queries[b, i, channel, j] * seen, axis=c)

    relation = te.compute(shape, product, name=Block.RELATION)

    def score(b, h, i, block, u, v, lane):
        j = block * lanes + lane
        value = relation[b, h, i, block, u, v, lane]
        if bias is not None:
            value = value + bias[h, rows.place(i, u), columns.place(j, v)].astype(dtype)
        if border != "masked":
            return value
        return tirx.Select(tirx.all(rows.inside(i, u), columns.inside(j, v)), value, tirx.min_value(dtype))

    scores = te.compute(shape, score, name=Block.SCORES)
    pixels = (n, num_heads, height, blocks, lanes)
    u, v = te.reduce_axis((0, taps[0]), "u"), te.reduce_axis((0, taps[1]), "v")
    peak = te.compute(
        pixels, lambda b, h, i, t, lane: te.max(scores[b, h, i, t, u, v, lane], axis=[u, v]), name=Block.RELATION_MAX
    )
    weights = te.compute(
        shape,
        lambda b, h, i, t, u, v, lane: tirx.exp(scores[b, h, i, t, u, v, lane] - peak[b, h, i, t, lane]),
        name=Block.RELATION_EXP,
    )
    u, v = te.reduce_axis((0, taps[0]), "u"), te.reduce_axis((0, taps[1]), "v")
    total = te.compute(
        pixels, lambda b, h, i, t, lane: te.sum(weights[b, h, i, t, u, v, lane], axis=[u, v]), name=Block.RELATION_SUM
    )

    values = value if border == "shifted" else pad_space(value, layout, reach)
    values = _widened(values, dtype)
    before = (0, 0) if border == "shifted" else reach
    u, v = te.reduce_axis((0, taps[0]), "u"), te.reduce_axis((0, taps[1]), "v")

    def aggregate(*index):
        at = dict(zip(layout, index, strict=True))
        b, channel, i, j = (at[dim] for dim in "NCHW")
        weight = weights[b, channel // value_head, i, j // lanes, u, v, j % lanes]
        row, column = rows.seen(i, u) + before[0], columns.seen(j, v) + before[1]
        return te.sum(weight * read(values, b, channel, row, column), axis=[u, v])

    sums = te.compute(value.shape, aggregate, name=Block.ATTENTION, tag="local_attention2d")

    def divided(*index):
        at = dict(zip(layout, index, strict=True))
        b, channel, i, j = (at[dim] for dim in "NCHW")
        return (sums(*index) / total[b, channel // value_head, i, j // lanes, j % lanes]).astype(value.dtype)

    return te.compute(value.shape, divided, name=Block.ATTENTION_OUT)


def _widened(x: te.Tensor, dtype: str) -> te.Tensor:
    if str(x.dtype) == dtype:
        return x
    return te.compute(x.shape, lambda *index: x(*index).astype(dtype), name=Block.VALUES)


@dataclass(frozen=True)
class _Axis:
    """What the windows along an axis see."""

    size: tirx.PrimExpr
    taps: int
    step: int
    border: str

    def seen(self, pixel, tap):
        """Return which pixel a window sees."""
        if self.border != "shifted":
            return pixel + (tap - self.taps // 2) * self.step
        return pixel % self.step + (self._first(pixel) + tap) * self.step

    def inside(self, pixel, tap):
        """Return whether there is such a pixel."""
        seen = self.seen(pixel, tap)
        return tirx.all(seen >= 0, seen < self.size)

    def place(self, pixel, tap):
        """Return where in the bias its number is."""
        if self.border != "shifted":
            return tap
        return self._first(pixel) + tap - pixel // self.step + (self.taps - 1)

    def select(self, pixel, tap, lanes, read):
        """Return `read` of the pixel that is seen; for neighbouring windows neighbours, save those that are moved."""
        half = self.taps // 2
        if self.border != "shifted" or self.step > 1 or half == 0 or lanes == 1:
            return read(self.seen(pixel, tap))
        last = tirx.Select(pixel >= self.size - half, read(self.size - self.taps + tap), read(pixel - half + tap))
        return tirx.Select(pixel < half, read(tap), last)

    def _first(self, pixel):
        """Return the first of a moved window, among every `step`-th pixel."""
        neighbours = (self.size - pixel % self.step + (self.step - 1)) // self.step
        return tirx.min(tirx.max(pixel // self.step - self.taps // 2, 0), neighbours - self.taps)
