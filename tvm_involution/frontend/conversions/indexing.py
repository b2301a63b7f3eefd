# SPDX-License-Identifier: Apache-2.0
"""Reading and writing at places that tensors name.

Where torch raises for an index out of range, compiled code cannot: runtime indices are moved into the range, so that
nothing outside the tensor is ever read or written. Indices known at compile time are checked here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from .operation import Operation, Scalar, constant, dtype_of, known, shape_of

_REDUCTIONS = {"sum": "add", "add": "add", "prod": "mul", "multiply": "mul", "amax": "max", "amin": "min"}


def index(operation: Operation, x: relax.Expr, indices: Sequence[relax.Expr | None], *_: object) -> relax.Expr:
    """`x[indices]`, None for a whole axis: the indexed axes are made one, from which the elements are taken."""
    places = _places(operation, x, indices)
    taken = operation.emit(relax.op.take(places.folded, places.linear, places.axis, mode="clip"))
    return operation.reshape(taken, operation.shape)


def index_put(
    operation: Operation,
    x: relax.Expr,
    indices: Sequence[relax.Expr | None],
    values: relax.Expr,
    accumulate: bool = False,
) -> relax.Expr:
    """x with `x[indices] = values`, or `+= values`, where an element that is named twice grows twice."""
    shape = shape_of(x)
    if _is_mask_alone(indices) and math.prod(shape_of(values)) == 1 and not accumulate:  # x[mask] = number
        mask = indices[0]
        mask = operation.reshape(mask, (*shape_of(mask), *(1,) * (len(shape) - len(shape_of(mask)))))
        return relax.op.where(mask, operation.reshape(operation.cast(values), ()), x)
    places = _places(operation, x, indices, first=True)
    linear_shape, rest = shape_of(places.linear), shape_of(places.folded)[1:]
    rows = math.prod(linear_shape)
    # torch lays values out as x[indices] would be: the indexed axes stand where the first of adjacent ones stood
    whole = (*rest[: places.leading], *linear_shape, *rest[places.leading :])
    spread = operation.broadcast(operation.cast(values), whole)
    first = range(places.leading, places.leading + len(linear_shape))
    order = [*first, *(axis for axis in range(len(whole)) if axis not in first)]
    updates = operation.reshape(relax.op.permute_dims(spread, order) if order else spread, (rows, *rest))
    linear = operation.reshape(places.linear, (rows,))
    at = known(places.linear)
    if at is not None:
        result = _written(operation, places.folded, at.ravel(), updates, accumulate)
    else:
        linear = operation.emit(relax.op.expand_dims(linear, 1))
        reduction = "add" if accumulate else "update"
        result = operation.emit(relax.op.scatter_nd(places.folded, linear, updates, reduction))
    unfolded = operation.reshape(result, [shape[axis] for axis in places.order])
    back = [places.order.index(axis) for axis in range(len(shape))]
    return unfolded if back == list(range(len(shape))) else relax.op.permute_dims(unfolded, back)


def index_select(operation: Operation, x: relax.Expr, dim: int, at: relax.Expr) -> relax.Expr:
    """Elements of one axis."""
    shape = shape_of(x)
    if not shape:
        return operation.reshape(x, operation.shape)
    at = operation.reshape(at, (operation.shape[dim],))
    return relax.op.take(x, _in_range(operation, at, shape[dim]), dim % len(shape), mode="clip")


def embedding(operation: Operation, weight: relax.Expr, at: relax.Expr, *_: object) -> relax.Expr:
    """Rows of the weight."""
    return relax.op.take(weight, _in_range(operation, at, shape_of(weight)[0]), 0, mode="clip")


def gather(operation: Operation, x: relax.Expr, dim: int, at: relax.Expr, **_: object) -> relax.Expr:
    """Elements of one axis, others for each place along the other axes."""
    shape = shape_of(x)
    if not shape:
        return operation.broadcast(x, operation.shape)
    axis = dim % len(shape)
    at = _in_range(operation, at, shape[axis])
    # torch reads the front part of axes along which there are fewer indices
    front = [size if other == axis else operation.shape[other] for other, size in enumerate(shape)]
    if front != list(shape):
        axes = list(range(len(shape)))
        x = operation.emit(relax.op.strided_slice(x, axes, [0] * len(shape), front, [1] * len(shape)))
    return relax.op.gather_elements(x, at, axis)


def take(operation: Operation, x: relax.Expr, at: relax.Expr) -> relax.Expr:
    """Elements of x by their places in memory."""
    size = math.prod(shape_of(x))
    return relax.op.take(operation.reshape(x, (size,)), _in_range(operation, at, size, wraps=True), 0, mode="clip")


def scatter(
    operation: Operation,
    x: relax.Expr,
    dim: int,
    at: relax.Expr,
    source: relax.Expr | Scalar,
    reduce: str | None = None,
    include_self: bool = True,
) -> relax.Expr:
    """x with elements of one axis replaced by those of `source`, or joined with them by `reduce`."""
    shape = shape_of(x) or (1,)
    axis = dim % len(shape)
    x = operation.reshape(operation.cast(x), shape)
    at = operation.reshape(at, shape_of(at) or (1,))
    at = _in_range(operation, at, shape[axis])
    wanted = shape_of(at)
    if isinstance(source, relax.Expr) and shape_of(source):
        front = list(wanted)
        source = operation.cast(source)
        if shape_of(source) != wanted:
            axes = list(range(len(front)))
            source = operation.emit(relax.op.strided_slice(source, axes, [0] * len(front), front, [1] * len(front)))
    else:
        source = operation.broadcast(operation.cast(source), wanted)

    def scattered(base: relax.Expr, updates: relax.Expr, how: str) -> relax.Expr:
        return operation.emit(relax.op.scatter_elements(base, at, updates, axis, how))

    if reduce is None:
        return operation.reshape(scattered(x, source, "update"), operation.shape)
    averaged = reduce == "mean"
    if not include_self:
        neutral = {"sum": 0, "mean": 0, "prod": 1, "amax": -math.inf, "amin": math.inf}[reduce]
        x = scattered(x, operation.broadcast(operation.cast(neutral), wanted), "update")
    result = scattered(x, source, "add" if averaged else _REDUCTIONS[reduce])
    if averaged:
        ones = operation.broadcast(operation.cast(1), shape)
        counts = scattered(ones, operation.broadcast(operation.cast(1), wanted), "add")
        if not include_self:
            less = operation.emit(relax.op.subtract(counts, operation.cast(1)))
            counts = operation.emit(relax.op.maximum(less, operation.cast(1)))
        function = relax.op.divide if "float" in operation.dtype else relax.op.floor_divide
        result = operation.emit(function(result, counts))
    return operation.reshape(result, operation.shape)


def scatter_add(operation: Operation, x: relax.Expr, dim: int, at: relax.Expr, source: relax.Expr) -> relax.Expr:
    """x with the elements of `source` added."""
    return scatter(operation, x, dim, at, source, "sum")


def index_reduce(
    operation: Operation,
    x: relax.Expr,
    dim: int,
    at: relax.Expr,
    source: relax.Expr,
    reduce: str,
    include_self: bool = True,
) -> relax.Expr:
    """`scatter` of whole slices."""
    shape = shape_of(source)
    if shape:
        line = [1] * len(shape)
        line[dim] = shape[dim]
        at = operation.broadcast(operation.reshape(at, line), shape)
    return scatter(operation, x, dim, at, source, reduce, include_self)


def put(
    operation: Operation, x: relax.Expr, at: relax.Expr, source: relax.Expr, accumulate: bool = False
) -> relax.Expr:
    """x with elements replaced, or added to, by their places in memory."""
    flat = operation.reshape(x, (math.prod(shape_of(x)),))
    return operation.reshape(index_put(operation, flat, [at], source, accumulate), operation.shape)


def masked_scatter(operation: Operation, x: relax.Expr, mask: relax.Expr, source: relax.Expr) -> relax.Expr:
    """x with the elements under the mask replaced by the first of the source, in order."""
    count = math.prod(operation.shape)
    mask = operation.broadcast(mask, operation.shape)
    numbers = operation.cast(operation.reshape(mask, (count,)), "int64")
    order = operation.emit(relax.op.subtract(relax.op.cumsum(numbers, 0), relax.const(1, "int64")))
    flat = operation.reshape(source, (math.prod(shape_of(source)),))
    taken = operation.reshape(relax.op.take(flat, order, 0, mode="clip"), operation.shape)
    return relax.op.where(mask, taken, operation.broadcast(x, operation.shape))


def histogram(operation: Operation, x: relax.Expr, bins: int, low: Scalar, high: Scalar) -> relax.Expr:
    """How many elements lie in each of so many equal parts of a range, by default that of the elements."""
    flat = operation.reshape(x, (math.prod(shape_of(x)), 1))
    below, above = (operation.cast(bound) for bound in (low, high))
    if low == high == 0:
        below, above = (operation.emit(f(flat, None, False)) for f in (relax.op.min, relax.op.max))
    span = operation.emit(relax.op.subtract(above, below))
    share = relax.op.divide(relax.op.multiply(relax.op.subtract(flat, below), operation.cast(bins)), span)
    place = relax.op.minimum(relax.op.floor(share), operation.cast(bins - 1))
    inside = relax.op.logical_and(relax.op.greater_equal(flat, below), relax.op.less_equal(flat, above))
    hit = relax.op.equal(place, operation.cast(constant(np.arange(bins, dtype="float32")[None])))
    counted = operation.cast(operation.emit(relax.op.logical_and(hit, inside)), "float32")
    return operation.cast(operation.emit(relax.op.sum(counted, [0], False)))


def searchsorted(
    operation: Operation,
    boundaries: relax.Expr,
    x: relax.Expr | Scalar,
    right: bool = False,
    side: str | None = None,
    sorter: relax.Expr | None = None,
    **_: object,
) -> relax.Expr:
    """How many boundaries lie before each element of x: those below, with `right` also those equal to it."""
    x = operation.emit(operation.cast(x, dtype_of(boundaries)))
    if sorter is not None:
        boundaries = operation.emit(relax.op.gather_elements(boundaries, sorter, len(shape_of(boundaries)) - 1))
    rows = shape_of(boundaries)
    if len(rows) == 1:
        boundaries = operation.reshape(boundaries, (*(1,) * len(shape_of(x)), *rows))
    else:
        boundaries = operation.reshape(boundaries, (*rows[:-1], 1, rows[-1]))
    function = relax.op.less_equal if right or side == "right" else relax.op.less
    passed = operation.cast(operation.emit(function(boundaries, relax.op.expand_dims(x, len(shape_of(x))))), "int32")
    counted = operation.emit(relax.op.sum(passed, [len(shape_of(passed)) - 1], False))
    return operation.reshape(operation.cast(counted), operation.shape)


def bucketize(operation: Operation, x: relax.Expr | Scalar, boundaries: relax.Expr, **options: bool) -> relax.Expr:
    """`searchsorted` with its operands the other way round."""
    return searchsorted(operation, boundaries, x, bool(options.get("right", False)))


@dataclass
class _Places:
    """Where indices point.

    Attributes:
        folded: x with the indexed axes made one.
        linear: the places along that axis, broadcast from all indices.
        axis: that axis.
        leading: how many axes stand before the indices' in what torch makes of `x[indices]`.
        order: x's axes in the order that they have in `folded`, before some became one.
    """

    folded: relax.Expr
    linear: relax.Expr
    axis: int
    leading: int
    order: list[int]


def _places(operation: Operation, x: relax.Expr, indices: Sequence[relax.Expr | None], first: bool = False) -> _Places:
    """Return where `indices` point; `first`: with the indexed axes in front."""
    shape = shape_of(x)
    given = _without_masks(indices)
    axes = [axis for axis, at in enumerate(given) if at is not None]
    others = [axis for axis in range(len(shape)) if axis not in axes]
    adjacent = axes == list(range(axes[0], axes[0] + len(axes)))
    leading = axes[0] if adjacent else 0
    order = [*axes, *others] if first or not adjacent else list(range(len(shape)))
    position = order.index(axes[0])
    if order != list(range(len(shape))):
        x = operation.emit(relax.op.permute_dims(x, order))
    sizes = [shape[axis] for axis in axes]
    ordered = [shape[axis] for axis in order]
    folded = operation.reshape(x, (*ordered[:position], math.prod(sizes), *ordered[position + len(axes) :]))
    linear: relax.Expr | None = None
    for axis, size in zip(axes, sizes, strict=True):
        at = _in_range(operation, given[axis], size, wraps=True)
        linear = at if linear is None else _plus(operation, _times(operation, linear, size), at)
    return _Places(folded, linear, position, leading, order)


def _is_mask_alone(indices: Sequence[relax.Expr | None]) -> bool:
    first, *others = indices
    return first is not None and dtype_of(first) == "bool" and not others


def _without_masks(indices: Sequence[relax.Expr | None]) -> list[relax.Expr | None]:
    """Return `indices` with masks known at compile time as the places that they name."""
    plain: list[relax.Expr | None] = []
    for at in indices:
        if at is None or dtype_of(at) not in ("bool", "uint8"):
            plain.append(at)
            continue
        mask = known(at)
        if mask is None:
            raise NotImplementedError(
                "a mask as an index makes a shape that depends on values; use torch.where with the mask"
            )
        plain += [constant(places.astype("int64")) for places in np.nonzero(mask)]
    return plain


def _in_range(operation: Operation, at: relax.Expr, size: int, wraps: bool = False) -> relax.Expr:
    """Return indices from 0 to size - 1; those below 0 count from the end where torch lets them."""
    values = known(at)
    if values is not None:
        low = -size if wraps else 0
        if values.size and not (low <= values.min() and values.max() < size):
            raise IndexError(f"an index is out of range: {values.min()} to {values.max()} for a size of {size}")
        return constant(np.where(values < 0, values + size, values))
    zero, last, extent = (relax.const(value, dtype_of(at)) for value in (0, size - 1, size))
    if wraps:
        at = relax.op.where(relax.op.less(at, zero), relax.op.add(at, extent), at)
    return operation.emit(relax.op.minimum(relax.op.maximum(at, zero), last))


def _times(operation: Operation, at: relax.Expr, size: int) -> relax.Expr:
    values = known(at)
    if values is not None:
        return constant(values * size)
    return operation.emit(relax.op.multiply(at, relax.const(size, dtype_of(at))))


def _plus(operation: Operation, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    left, right = known(x), known(y)
    if left is not None and right is not None:
        return constant(left + right)
    return operation.emit(relax.op.add(*operation.common(x, y)))


def _written(operation: Operation, x: relax.Expr, at: np.ndarray, updates: relax.Expr, accumulate: bool) -> relax.Expr:
    """Return x with rows at known places written: each row of the result asks who writes it, so no two ever race."""
    size, rows = shape_of(x)[0], len(at)
    if not accumulate:
        order = np.arange(size)
        order[at] = size + np.arange(rows)
        both = operation.emit(relax.op.concat([x, updates], 0))
        return operation.emit(relax.op.take(both, constant(order), 0, mode="clip"))
    writers: list[list[int]] = [[] for _ in range(size)]
    for row, place in enumerate(at):
        writers[place].append(row)
    most = max(len(rows_) for rows_ in writers)
    padded = operation.emit(relax.op.concat([updates, relax.op.zeros((1, *shape_of(x)[1:]), operation.dtype)], 0))
    table = np.array([own + [rows] * (most - len(own)) for own in writers], np.int64)
    for column in range(most):
        more = relax.op.take(padded, constant(table[:, column]), 0, mode="clip")
        x = operation.emit(relax.op.add(x, more))
    return x
