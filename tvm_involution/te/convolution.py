# SPDX-License-Identifier: Apache-2.0
"""Convolution in NHWC or NDHWC with a packed weight: the 1x1 convolutions around an involution are matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from tvm import te, tirx

from ..arguments import Size, checked
from ..errors import UserError
from .accumulate import accumulator_dtype
from .blocks import Block
from .checks import check_array, check_dtype, check_out_channels, check_rank, check_window_fits, one_each, shape_text


@checked
def pack_weight(weight: np.ndarray, lanes: Size, values: Size = 1) -> np.ndarray:
    """Pack a convolution's weight so that `lanes` output channels lie side by side.

    Args:
        weight: (O, I, KH, KW), or (O, I, KD, KH, KW), whose planes are packed as one behind the other: KD*KH rows.
        lanes: width of a pack; O is padded with zeros to a multiple of it.
        values: input channels that lie side by side inside that, for dot products: two of half types, four of bytes.

    Returns:
        (ceil(O / lanes), KH, KW, I, lanes), with several values (ceil(O / lanes), KH, KW, ceil(I / values), lanes,
        values), contiguous.
    """
    check_array("weight", weight, 4, 5)
    o, i, *_, kw = weight.shape
    weight = weight.reshape(o, i, -1, kw)
    kh = weight.shape[2]
    packs = -(-o // lanes)
    inputs = -(-i // values) * values
    padded = np.zeros((packs * lanes, inputs, kh, kw), weight.dtype)
    padded[:o, :i] = weight
    if values > 1:
        split = padded.reshape(packs, lanes, inputs // values, values, kh, kw)
        return np.ascontiguousarray(split.transpose(0, 4, 5, 2, 1, 3))
    return np.ascontiguousarray(padded.reshape(packs, lanes, i, kh, kw).transpose(0, 3, 4, 2, 1))


@checked
def pack_grouped_weight(weight: np.ndarray, groups: Size, lanes: Size) -> np.ndarray:
    """Pack the weight of a grouped convolution as `pack_weight` does, with the inputs that each pack sees.

    A pack of outputs that has several groups in it sees all of their inputs, and multiplies those of other groups by
    zero.

    Args:
        weight: (O, I / groups, KH, KW).

    Returns:
        (ceil(O / lanes), KH, KW, inputs of a pack, lanes), contiguous; `first_inputs` says where they begin.
    """
    check_array("weight", weight, 4)
    out_channels, inputs, kernel_h, kernel_w = weight.shape
    if out_channels % groups:
        raise UserError(f"weight's {out_channels} output channels are no multiple of {groups} groups")
    packs, outputs = -(-out_channels // lanes), out_channels // groups
    seen = inputs_of_packs(out_channels, inputs, groups, lanes)
    packed = np.zeros((packs, kernel_h, kernel_w, seen, lanes), weight.dtype)
    for channel in range(out_channels):
        pack, lane = divmod(channel, lanes)
        begin = channel // outputs * inputs - first_input(pack, seen, out_channels, inputs, groups, lanes)
        packed[pack, :, :, begin : begin + inputs, lane] = weight[channel].transpose(1, 2, 0)
    return packed


def inputs_of_packs(out_channels: int, inputs: int, groups: int, lanes: int) -> int:
    """Return how many input channels the groups of a pack of `lanes` outputs have, at most."""
    outputs = out_channels // groups
    begins = range(0, out_channels, lanes)
    return max((min(begin + lanes, out_channels) - 1) // outputs - begin // outputs + 1 for begin in begins) * inputs


def first_input(pack, seen: int, out_channels: int, inputs: int, groups: int, lanes: int):
    """Return the first input channel that a pack sees; of a number, or of an expression."""
    outputs, last = out_channels // groups, inputs * groups - seen
    if outputs % lanes == 0:
        return pack // (outputs // lanes) * inputs
    if lanes % outputs == 0 and out_channels % lanes == 0:
        return pack * (lanes // outputs * inputs)
    begin = pack * lanes // outputs * inputs
    return min(begin, last) if isinstance(pack, int) else tirx.min(begin, tirx.const(last, begin.ty.dtype))


@checked
def conv2d_packed(
    x: te.Tensor,
    weight: te.Tensor,
    out_channels: int,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    out_dtype: str | None = None,
    kernel_size: Sequence[int] | None = None,
    groups: Size = 1,
    strip: Size = 1,
) -> te.Tensor:
    """Convolve; sums are kept in float32 for the half types, in int32 for bytes.

    Args:
        x: (N, H, W, I); or (N, D, H, W, I), with a number more for each axis in the arguments.
        weight: from `pack_weight`, of at least `out_channels`; with groups from `pack_grouped_weight`.
        padding: zeros added before each axis, then behind each: (top, left, bottom, right).
        out_dtype: that of x by default.
        kernel_size: needed in three dimensions, where the packed weight does not tell it.
        strip: rows of sums are filled up to a multiple of so many pixels, which a schedule can take together.

    Returns:
        (N, OH, OW, out_channels) or (N, OD, OH, OW, out_channels). Blocks: `pad_temp` where there is padding (of
        pixels, or of one channel to make them even) or rows are filled up, `conv2d` (the sums, over all packed
        channels), `conv2d_out` (the wanted channels, in `out_dtype`).
    """
    check_rank("x", x, 4, 5)
    check_rank("weight", weight, 5, 6)
    check_dtype("out_dtype", out_dtype or x.dtype)
    axes = len(x.shape) - 2
    for name, values, minimum in (("stride", stride, 1), ("dilation", dilation, 1)):
        one_each(name, values, axes, minimum)
    one_each("padding", padding, 2 * axes, 0)
    n, *size, in_channels = x.shape
    packs, *rows_columns, _, lanes = (int(d) for d in weight.shape[:5])
    taps = one_each("kernel_size", kernel_size or rows_columns, axes, 1)
    if [math.prod(taps[:-1]), taps[-1]] != rows_columns:
        raise UserError(f"kernel_size {taps} contradicts the weight's shape {shape_text(weight)}")
    check_out_channels(out_channels, packs * lanes)
    before, behind = padding[: len(size)], list(padding[len(size) :])
    out_size = [
        (first + extent + last - step * (count - 1) - 1) // moved + 1
        for first, extent, last, step, count, moved in zip(before, size, behind, dilation, taps, stride, strict=True)
    ]
    check_window_fits(x, [step * (count - 1) + 1 for step, count in zip(dilation, taps, strict=True)], out_size)
    columns = -(-out_size[-1] // strip) * strip
    if strip > 1:
        read = (columns - 1) * stride[-1] + dilation[-1] * (taps[-1] - 1) + 1
        behind[-1] = max(behind[-1], read - int(size[-1]) - before[-1])
    padded_size = [first + extent + last for first, extent, last in zip(before, size, behind, strict=True)]
    source = x
    channels = _channel_axes(weight)
    seen = math.prod(int(axis.dom.extent) for axis in channels)
    _check_inputs(weight, seen, int(in_channels), out_channels, groups)
    padded_channels = max(seen, int(in_channels))
    if any((*before, *behind)) or padded_channels > int(in_channels):

        def padded(b, *index):
            *pixel, c = index
            inside = []
            for place, first, extent in zip(pixel, before, size, strict=True):
                inside += [place >= first, place < first + extent]
            inner = [place - first for place, first in zip(pixel, before, strict=True)]
            return tirx.if_then_else(tirx.all(*inside, c < in_channels), x(b, *inner, c), tirx.const(0, x.dtype))

        source = te.compute((n, *padded_size, padded_channels), padded, name=Block.PADDED, tag="injective,pad")
    window = [
        te.reduce_axis((0, count), name) for count, name in zip(taps, ("kd", "kh", "kw")[-len(taps) :], strict=True)
    ]
    sum_dtype = accumulator_dtype(x.dtype)

    def product(b, *index):
        *pixel, o = index
        places = [p * moved + k * step for p, moved, k, step in zip(pixel, stride, window, dilation, strict=True)]
        *rows, column = window
        row = rows[0] if len(rows) == 1 else rows[0] * taps[1] + rows[1]
        weight_value = weight[(o // lanes, row, column, channels[0], o % lanes, *channels[1:])]
        channel = _channel(channels)
        if groups > 1:
            channel += first_input(o // lanes, seen, out_channels, int(in_channels) // groups, groups, lanes)
        return source(b, *places, channel).astype(sum_dtype) * weight_value.astype(sum_dtype)

    sums = te.compute(
        (n, *out_size[:-1], columns, packs * lanes),
        lambda *index: te.sum(product(*index), axis=[*window, *channels]),
        name=Block.CONV2D,
        tag="conv2d_packed",
    )
    return te.compute(
        (n, *out_size, out_channels),
        lambda *index: sums(*index).astype(out_dtype or x.dtype),
        name=Block.CONV2D_OUT,
        tag="injective",
    )


@checked
def matmul_packed(x: te.Tensor, weight: te.Tensor, out_channels: int, out_dtype: str | None = None) -> te.Tensor:
    """Multiply rows x (M, I) by a weight from `pack_weight`; returns (M, out_channels), by default of the dtype of x.

    Blocks: `conv2d` and `conv2d_out`, as in `conv2d_packed`, so one schedule serves both.
    """
    check_rank("x", x, 2)
    check_rank("weight", weight, 5, 6)
    check_dtype("out_dtype", out_dtype or x.dtype)
    rows, in_features = (int(d) for d in x.shape)
    packs, _, _, _, lanes, *_ = (int(d) for d in weight.shape)
    check_out_channels(out_channels, packs * lanes)
    channels = _channel_axes(weight)
    padded_features = math.prod(int(axis.dom.extent) for axis in channels)
    _check_inputs(weight, padded_features, in_features, out_channels, 1)
    source = x
    if padded_features > in_features:
        source = te.compute(
            (rows, padded_features),
            lambda m, c: tirx.if_then_else(c < in_features, x[m, c], tirx.const(0, x.dtype)),
            name=Block.PADDED,
            tag="injective,pad",
        )
    sum_dtype = accumulator_dtype(x.dtype)

    def product(m, o):
        weight_value = weight[(o // lanes, 0, 0, channels[0], o % lanes, *channels[1:])]
        return source[m, _channel(channels)].astype(sum_dtype) * weight_value.astype(sum_dtype)

    sums = te.compute(
        (rows, packs * lanes),
        lambda m, o: te.sum(product(m, o), axis=channels),
        name=Block.CONV2D,
        tag="conv2d_packed",
    )
    return te.compute(
        (rows, out_channels),
        lambda m, o: sums[m, o].astype(out_dtype or x.dtype),
        name=Block.CONV2D_OUT,
        tag="injective",
    )


def _check_inputs(weight: te.Tensor, seen: int, in_channels: int, out_channels: int, groups: int) -> None:
    """Check that each pack of `weight` sees what it must of the input channels of x."""
    if in_channels % groups or out_channels % groups:
        raise UserError(f"groups must divide x's {in_channels} channels and the {out_channels} wanted, got {groups}")
    values = int(weight.shape[5]) if len(weight.shape) == 6 else 1
    wanted = inputs_of_packs(out_channels, in_channels // groups, groups, int(weight.shape[4]))
    if seen != -(-wanted // values) * values:
        raise UserError(
            f"weight's shape {shape_text(weight)} does not fit x's {in_channels} channels in {groups} groups"
        )


def _channel_axes(weight: te.Tensor) -> list[tirx.IterVar]:
    """Return the axes over the input channels: one, or with several side by side two."""
    axes = [te.reduce_axis((0, int(weight.shape[3])), "ic")]
    if len(weight.shape) == 6:
        axes.append(te.reduce_axis((0, int(weight.shape[5])), "value"))
    return axes


def _channel(axes: list[tirx.IterVar]):
    return axes[0] if len(axes) == 1 else axes[0] * int(axes[1].dom.extent) + axes[1]
