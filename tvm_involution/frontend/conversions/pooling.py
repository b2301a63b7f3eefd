# SPDX-License-Identifier: Apache-2.0
"""Pooling over one to three axes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from tvm import relax

from .operation import Operation, constant, shape_of

_MAX = {1: relax.op.nn.max_pool1d, 2: relax.op.nn.max_pool2d, 3: relax.op.nn.max_pool3d}
_AVERAGE = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}
_ADAPTIVE = {
    1: relax.op.nn.adaptive_avg_pool1d,
    2: relax.op.nn.adaptive_avg_pool2d,
    3: relax.op.nn.adaptive_avg_pool3d,
}
_LAYOUT = {1: "NCW", 2: "NCHW", 3: "NCDHW"}


def max_pool(
    operation: Operation,
    x: relax.Expr,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> list[relax.Expr]:
    """The largest value of each window, and where in the channel it is, if anybody asks."""
    rank, batched = _batched(operation, x)
    kernel, steps, pads, dilations = (_each(v, rank) for v in (kernel_size, stride or kernel_size, padding, dilation))
    sizes, outs = shape_of(batched)[2:], operation.shape[-rank:]
    after = [
        max(geometry[4], _behind(*geometry))
        for geometry in zip(sizes, outs, kernel, steps, pads, dilations, strict=True)
    ]
    if _by_one(kernel, steps, pads):
        values = x
    else:
        pooled = _MAX[rank](batched, kernel, steps, [*pads, *after], dilations, ceil_mode=False, layout=_LAYOUT[rank])
        values = operation.reshape(pooled, operation.shape)
    if not operation.uses(1):
        return [values, relax.op.zeros(operation.shape, "int64")]
    windows = [
        np.arange(out)[:, None] * step - pad + np.arange(extent) * dilated
        for out, step, pad, extent, dilated in zip(outs, steps, pads, kernel, dilations, strict=True)
    ]
    inside = [np.where((w >= 0) & (w < size), w, -1) for w, size in zip(windows, sizes, strict=True)]
    return [values, _positions(operation, batched, inside)]


def adaptive_max_pool(operation: Operation, x: relax.Expr, output_size: Sequence[int]) -> list[relax.Expr]:
    """The largest value of each of so many parts of the axes, and where in the channel it is."""
    rank, batched = _batched(operation, x)
    sizes, outs = shape_of(batched)[2:], operation.shape[-rank:]
    inside = []
    values = batched
    for axis, (size, out) in enumerate(zip(sizes, outs, strict=True), 2):
        parts = [range(part * size // out, -(-(part + 1) * size // out)) for part in range(out)]
        longest = max(map(len, parts))
        inside.append(np.array([[*part, *[-1] * (longest - len(part))] for part in parts]))
        values = operation.emit(_largest_along(operation, values, axis, parts))
    values = operation.reshape(values, operation.shape)
    if not operation.uses(1):
        return [values, relax.op.zeros(operation.shape, "int64")]
    return [values, _positions(operation, batched, inside)]


def _largest_along(operation: Operation, x: relax.Expr, axis: int, parts: Sequence[range]) -> relax.Expr:
    """Return x with the largest value of each part of an axis along it."""
    if len(parts) == 1:
        return relax.op.max(x, [axis], keepdims=True)
    longest = max(map(len, parts))
    # the last place of a shorter part counts twice
    places = np.array([[*part, *[part[-1]] * (longest - len(part))] for part in parts])
    return relax.op.max(operation.emit(relax.op.take(x, constant(places), axis, mode="clip")), [axis + 1])


def avg_pool(
    operation: Operation,
    x: relax.Expr,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> relax.Expr:
    """The mean of each window, in which padding counts as zeros or not at all.

    Where TVM's pooling counts otherwise, that of the padded tensor is multiplied by what it divides by and divided by
    what torch does, which is known.
    """
    rank, batched = _batched(operation, x)
    kernel, steps, pads = (_each(v, rank) for v in (kernel_size, stride or kernel_size, padding))
    sizes, outs = shape_of(batched)[2:], operation.shape[-rank:]
    if _by_one(kernel, steps, pads) and divisor_override is None:
        return x
    after = [max(g[4], _behind(*g, 1)) for g in zip(sizes, outs, kernel, steps, pads, strict=True)]
    if divisor_override is None and _same_in_tvm(sizes, outs, kernel, steps, pads, ceil_mode, count_include_pad):
        pooled = _AVERAGE[rank](
            batched,
            kernel,
            steps,
            pads * 2,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            layout=_LAYOUT[rank],
        )
        return operation.reshape(pooled, operation.shape)
    counts: np.ndarray = np.ones((), np.float64)
    for size, out, extent, step, pad in zip(sizes, outs, kernel, steps, pads, strict=True):
        starts = np.arange(out) * step - pad
        ends = np.minimum(starts + extent, size + pad)
        if not count_include_pad:
            starts, ends = np.maximum(starts, 0), np.minimum(ends, size)
        counts = counts[..., None] * (ends - starts)
    divisors = np.full(outs, float(divisor_override)) if divisor_override is not None else counts
    widths = [0, 0, 0, 0, *itertools.chain.from_iterable(zip(pads, after, strict=True))]
    padded = operation.emit(relax.op.nn.pad(batched, widths, "constant", 0.0)) if any(widths) else batched
    means = operation.emit(_AVERAGE[rank](padded, kernel, steps, layout=_LAYOUT[rank]))
    factors = operation.cast(constant((math.prod(kernel) / divisors).astype("float32")))
    return operation.reshape(relax.op.multiply(means, factors), operation.shape)


def adaptive_avg_pool(operation: Operation, x: relax.Expr, _: Sequence[int]) -> relax.Expr:
    """The mean of each of so many parts of the axes."""
    rank, batched = _batched(operation, x)
    outs, sizes = list(operation.shape[-rank:]), shape_of(batched)[2:]
    if tuple(outs) == sizes:
        return x
    if math.prod(outs) == 1:
        means = relax.op.mean(batched, list(range(2, rank + 2)), keepdims=True)
        return operation.reshape(means, operation.shape)
    return operation.reshape(_ADAPTIVE[rank](batched, outs, layout=_LAYOUT[rank]), operation.shape)


def _batched(operation: Operation, x: relax.Expr) -> tuple[int, relax.Expr]:
    """Return the number of pooled axes and x with a batch: the operator's name ends in the number."""
    name = operation.node.target.__name__
    rank = next(rank for rank in (1, 2, 3) if f"pool{rank}d" in name)
    shape = shape_of(x)
    return rank, x if len(shape) == rank + 2 else operation.reshape(x, (1, *shape))


def _each(values: Sequence[int] | int, rank: int) -> list[int]:
    given = [values] if isinstance(values, int) else [int(value) for value in values]
    return given * (rank if len(given) == 1 else 1)


def _by_one(kernel: Sequence[int], steps: Sequence[int], pads: Sequence[int]) -> bool:
    """Return whether each element is a window of its own."""
    return all(value == 1 for value in (*kernel, *steps)) and not any(pads)


def _behind(size: int, out: int, kernel: int, step: int, pad: int, dilation: int) -> int:
    """Return the padding behind an axis with which there are just `out` windows, none rounded up."""
    return max(0, (out - 1) * step + dilation * (kernel - 1) + 1 - size - pad)


def _same_in_tvm(
    sizes: Sequence[int],
    outs: Sequence[int],
    kernel: Sequence[int],
    steps: Sequence[int],
    pads: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> bool:
    """Return whether TVM's average pooling has the same windows and divisors."""
    if any(pads) and len(sizes) != 2:
        return False
    up = [step - 1 if ceil_mode else 0 for step in steps]
    same = [
        (size + 2 * pad - extent + more) // step + 1
        for size, pad, extent, more, step in zip(sizes, pads, kernel, up, steps, strict=True)
    ]
    return same == list(outs) and not (ceil_mode and count_include_pad)


def _flat(inside: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return (windows, elements of a window): the places in the channel, -1 outside, from those along each axis."""
    places = np.zeros((1, 1), np.int64)
    for window, size in zip(inside, sizes, strict=True):
        outside = (places < 0)[:, None, :, None] | (window < 0)[None, :, None, :]
        joined = np.where(outside, -1, places[:, None, :, None] * size + window[None, :, None, :])
        places = joined.reshape(places.shape[0] * window.shape[0], -1)
    return places


def _windows(operation: Operation, batched: relax.Expr, inside: Sequence[np.ndarray]) -> relax.Expr:
    """Return (N, C, windows, elements of a window), the least of all values for what is outside."""
    shape = shape_of(batched)
    places = _flat(inside, shape[2:])
    channels = operation.reshape(batched, (*shape[:2], math.prod(shape[2:])))
    taken = operation.emit(relax.op.take(channels, constant(np.maximum(places, 0)), 2, mode="clip"))
    if (places >= 0).all():
        return taken
    return operation.emit(relax.op.where(constant(places >= 0), taken, operation.cast(-math.inf)))


def _positions(operation: Operation, batched: relax.Expr, inside: Sequence[np.ndarray]) -> relax.Expr:
    """Return where in the channel the first of the largest values of each window is, int64."""
    places = _flat(inside, shape_of(batched)[2:])
    windows = _windows(operation, batched, inside)
    within = operation.emit(relax.op.argmax(windows, 3))
    row = constant(np.arange(len(places)) * places.shape[1])
    at = operation.emit(relax.op.add(within, row))
    return operation.reshape(relax.op.take(constant(places.ravel()), at, 0, mode="clip"), operation.shape)
