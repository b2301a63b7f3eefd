# SPDX-License-Identifier: Apache-2.0
"""Views, permutations, slices, and tensors put together or taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from tvm import relax

from .operation import Operation, Scalar, axes_of, constant, shape_of


def view(operation: Operation, x: relax.Expr, *_: object) -> relax.Expr:
    """x in the result's shape: `view`, `squeeze` of outer axes, and other ways to say it."""
    return operation.reshape(x, operation.shape)


def expand(operation: Operation, x: relax.Expr, *_: object, **__: object) -> relax.Expr:
    """x broadcast to the result's shape."""
    return operation.broadcast(x, operation.shape)


def replace_all(operation: Operation, _: relax.Expr, source: relax.Expr, *__: object) -> relax.Expr:
    """All values of a tensor replaced: the source in that tensor's shape and dtype."""
    return operation.broadcast(operation.cast(source), operation.shape)


def permute(operation: Operation, x: relax.Expr, dims: Sequence[int]) -> relax.Expr:
    """`permute_dims`."""
    return relax.op.permute_dims(x, axes_of(dims, len(dims))) if dims else x


def squeeze(operation: Operation, x: relax.Expr, dims: Sequence[int] | int | None = None) -> relax.Expr:
    """`squeeze` of axes counted from the front; `ConvertLayout` crashes over negative ones."""
    shape = shape_of(x)
    chosen = [] if dims in ([], ()) else axes_of(dims, len(shape))
    axes = [axis for axis in chosen if shape[axis] == 1]
    return relax.op.squeeze(x, axes) if axes else x


def unsqueeze(operation: Operation, x: relax.Expr, dim: int) -> relax.Expr:
    """`expand_dims`."""
    return relax.op.expand_dims(x, dim % len(operation.shape))


def slice_(
    operation: Operation, x: relax.Expr, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> relax.Expr:
    """`strided_slice`."""
    shape = shape_of(x)
    axis = dim % len(shape)
    begin, stop, step = slice(start, end, step).indices(shape[axis])
    if (begin, stop, step) == (0, shape[axis], 1):
        return x
    return relax.op.strided_slice(x, [axis], [begin], [max(begin, stop)], [step])


def narrow(operation: Operation, x: relax.Expr, dim: int, start: int, length: int) -> relax.Expr:
    """`length` elements of an axis from `start`."""
    begin = start % shape_of(x)[dim] if start < 0 else start
    return slice_(operation, x, dim, begin, begin + length)


def select(operation: Operation, x: relax.Expr, dim: int, index: int) -> relax.Expr:
    """One element of an axis, which is lost."""
    shape = shape_of(x)
    axis = dim % len(shape)
    return relax.op.take(x, relax.const(index % shape[axis], "int64"), axis, mode="clip")


def split(operation: Operation, x: relax.Expr, sizes: Sequence[int], dim: int = 0) -> Sequence[relax.Expr]:
    """Pieces of given sizes along an axis."""
    if len(sizes) == 1:
        return [x]
    pieces = operation.emit(relax.op.split(x, list(accumulate(sizes))[:-1], dim % len(shape_of(x))))
    return [pieces[piece] for piece in range(len(sizes))]


def cat(operation: Operation, tensors: Sequence[relax.Expr], dim: int = 0) -> relax.Expr:
    """`concat`, in the dtype that all fit in; empty tensors of one axis may be among them, as in torch."""
    kept = [operation.cast(tensor) for tensor in tensors if 0 not in shape_of(tensor)]
    return relax.op.concat(kept, dim % len(operation.shape)) if len(kept) > 1 else kept[0]


def repeat(operation: Operation, x: relax.Expr, repeats: Sequence[int]) -> relax.Expr:
    """`tile`, with new leading axes where there are more repeats than axes."""
    shape = shape_of(x)
    widened = operation.reshape(x, (*(1,) * (len(repeats) - len(shape)), *shape))
    return relax.op.tile(widened, list(repeats)) if repeats else widened


def flip(operation: Operation, x: relax.Expr, dims: Sequence[int]) -> relax.Expr:
    """`flip` of one axis after the other."""
    for axis in axes_of(dims, len(shape_of(x))) if dims else []:
        x = operation.emit(relax.op.flip(x, axis))
    return x


def pad(operation: Operation, x: relax.Expr, widths: Sequence[int], value: Scalar = 0) -> relax.Expr:
    """`nn.pad`; torch counts from the last axis, and negative widths take away."""
    shape = shape_of(x)
    sides = [(0, 0)] * (len(shape) - len(widths) // 2)
    sides += list(zip(widths[::2], widths[1::2], strict=True))[::-1]
    for axis, (before, after) in enumerate(sides):
        if before < 0 or after < 0:
            x = operation.emit(slice_(operation, x, axis, max(0, -before), shape[axis] - max(0, -after)))
    flat = [max(0, width) for side in sides for width in side]
    if not any(flat):
        return x
    if operation.dtype == "bool":
        padded = operation.emit(relax.op.nn.pad(operation.cast(x, "int8"), flat, "constant", int(value)))
        return operation.cast(padded)
    return relax.op.nn.pad(x, flat, "constant", value)


def diagonal(operation: Operation, x: relax.Expr, offset: int = 0, dim1: int = 0, dim2: int = 1) -> relax.Expr:
    """The elements whose indices along two axes differ by `offset`, as a last axis."""
    return take_positions(operation, x, np.diagonal(positions_of(shape_of(x)), offset, dim1, dim2))


def as_strided(
    operation: Operation, x: relax.Expr, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> relax.Expr:
    """Elements of x's memory, which is that of a contiguous tensor."""
    source = operation.node.args[0].meta["val"]
    if not source.is_contiguous() or source.storage_offset():
        raise NotImplementedError("as_strided of a view is not supported; call contiguous() before it")
    return take_positions(operation, x, strided_positions(size, stride, storage_offset or 0))


def unfold(operation: Operation, x: relax.Expr, dim: int, size: int, step: int) -> relax.Expr:
    """Windows of `size` along an axis, every `step`, as a last axis."""
    shape = shape_of(x)
    if not shape:
        return operation.reshape(x, operation.shape)
    axis = dim % len(shape)
    count = (shape[axis] - size) // step + 1
    windows = operation.emit(
        relax.op.take(x, constant(np.arange(count)[:, None] * step + np.arange(size)), axis, mode="clip")
    )
    axes = list(range(len(shape) + 1))
    return relax.op.permute_dims(windows, [*axes[: axis + 1], *axes[axis + 2 :], axis + 1])


def slice_scatter(
    operation: Operation,
    x: relax.Expr,
    source: relax.Expr,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> relax.Expr:
    """x with a slice of it replaced."""
    shape = shape_of(x)
    axis = dim % len(shape)
    order = np.arange(shape[axis])
    chosen = order[start:end:step]
    order[start:end:step] = shape[axis] + np.arange(len(chosen))
    both = operation.emit(relax.op.concat([operation.cast(x), operation.cast(source)], axis))
    return relax.op.take(both, constant(order), axis, mode="clip")


def select_scatter(operation: Operation, x: relax.Expr, source: relax.Expr, dim: int, index: int) -> relax.Expr:
    """x with one element of an axis replaced."""
    shape = shape_of(x)
    axis, place = dim % len(shape), index % shape[dim]
    thick = operation.emit(relax.op.expand_dims(source, axis))
    return slice_scatter(operation, x, thick, axis, place, place + 1)


def diagonal_scatter(
    operation: Operation, x: relax.Expr, source: relax.Expr, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> relax.Expr:
    """x with a diagonal replaced."""
    return replace_positions(operation, x, source, np.diagonal(positions_of(shape_of(x)), offset, dim1, dim2))


def as_strided_scatter(
    operation: Operation,
    x: relax.Expr,
    source: relax.Expr,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> relax.Expr:
    """x with elements of its memory replaced."""
    value = operation.node.args[0].meta["val"]
    if not value.is_contiguous() or value.storage_offset():
        raise NotImplementedError("as_strided_scatter of a view is not supported; call contiguous() before it")
    return replace_positions(operation, x, source, strided_positions(size, stride, storage_offset or 0))


def positions_of(shape: Sequence[int]) -> np.ndarray:
    """Return the place of each element of a tensor in memory."""
    return np.arange(int(np.prod(shape, dtype=np.int64))).reshape(shape)


def strided_positions(size: Sequence[int], stride: Sequence[int], offset: int) -> np.ndarray:
    """Return the places in memory that a strided view shows."""
    places = np.full((), offset, np.int64)
    for extent, step in zip(size, stride, strict=True):
        places = places[..., None] + np.arange(extent) * step
    return places


def take_positions(operation: Operation, x: relax.Expr, positions: np.ndarray) -> relax.Expr:
    """Return the elements of x at places of its memory that are known."""
    size = int(np.prod(shape_of(x), dtype=np.int64))
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise IndexError(f"index out of range: {positions.min()} to {positions.max()} of {size} elements")
    return relax.op.take(operation.reshape(x, (size,)), constant(positions), 0, mode="clip")


def replace_positions(operation: Operation, x: relax.Expr, values: relax.Expr, positions: np.ndarray) -> relax.Expr:
    """Return x with the elements at known places of its memory replaced, the last to come where a place comes twice."""
    shape = shape_of(x)
    size = int(np.prod(shape, dtype=np.int64))
    order = np.arange(size)
    order[positions.ravel()] = size + np.arange(positions.size)
    both = [operation.reshape(operation.cast(x), (size,)), operation.reshape(operation.cast(values), (positions.size,))]
    return relax.op.take(operation.emit(relax.op.concat(both, 0)), constant(order.reshape(shape)), 0, mode="clip")
