# SPDX-License-Identifier: Apache-2.0
"""Sums, means, extremes and what is counted along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tvm import relax

from .operation import Converter, Operation, axes_of, dtype_of, shape_of

Dims = Sequence[int] | int | None


def total(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False, **_: object) -> relax.Expr:
    """`sum`, in the result's dtype: that of truth values and whole numbers is int64."""
    return _reduce(relax.op.sum, operation, operation.cast(x), dims, keepdim)


def mean(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False, **_: object) -> relax.Expr:
    """`mean`."""
    return _reduce(relax.op.mean, operation, operation.cast(x), dims, keepdim)


def product(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False, **_: object) -> relax.Expr:
    """`prod`."""
    return _reduce(relax.op.prod, operation, operation.cast(x), dims, keepdim)


def extreme(function: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of `max` or `min`; truth values are numbers for it."""

    def convert(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False) -> relax.Expr:
        if operation.dtype == "bool":
            found = _reduce(function, operation, operation.cast(x, "int8"), dims, keepdim)
            return operation.cast(found, "bool")
        return _reduce(function, operation, x, dims, keepdim)

    return convert


def any_true(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False) -> relax.Expr:
    """Whether any is not 0."""
    numbers = operation.cast(operation.cast(x, "bool"), "int8")
    found = _reduce(relax.op.max, operation, numbers, dims, keepdim)
    return found if operation.dtype == "int8" else operation.cast(operation.cast(found, "bool"))


def all_true(operation: Operation, x: relax.Expr, dims: Dims = None, keepdim: bool = False) -> relax.Expr:
    """Whether none is 0."""
    numbers = operation.cast(operation.cast(x, "bool"), "int8")
    found = _reduce(relax.op.min, operation, numbers, dims, keepdim)
    return found if operation.dtype == "int8" else operation.cast(operation.cast(found, "bool"))


def position(function: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of `argmax` or `argmin`, of the whole tensor where there is no axis."""

    def convert(operation: Operation, x: relax.Expr, dim: int | None = None, keepdim: bool = False) -> relax.Expr:
        return operation.reshape(_position(function, operation, x, dim), operation.shape)

    return convert


def extreme_and_position(function: Callable[..., relax.Expr], where: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of `max` or `min` along an axis: the values and where they are."""

    def convert(operation: Operation, x: relax.Expr, dim: int, keepdim: bool = False) -> list[relax.Expr]:
        values = extreme(function)(operation, x, dim, keepdim)
        return [values, operation.reshape(_position(where, operation, x, dim), operation.shape)]

    return convert


def variance(
    operation: Operation, x: relax.Expr, dims: Dims = None, correction: float | None = None, keepdim: bool = False
) -> relax.Expr:
    """The mean square distance from the mean; the sum is divided by the number of values less the correction."""
    axes = axes_of(dims, len(shape_of(x)))
    count = math.prod(shape_of(x)[axis] for axis in axes)
    free = count - (1 if correction is None else correction)
    spread = _reduce(relax.op.variance, operation, x, dims, keepdim)
    if free == count:
        return spread
    if free <= 0:
        return relax.op.multiply(spread, operation.cast(math.inf))  # a division by 0, which TVM refuses
    return relax.op.multiply(spread, operation.cast(count / free))


def variance_and_mean(
    operation: Operation, x: relax.Expr, dims: Dims = None, correction: float | None = None, keepdim: bool = False
) -> list[relax.Expr]:
    """`variance` and `mean`."""
    return [variance(operation, x, dims, correction, keepdim), mean(operation, x, dims, keepdim)]


def running(function: Callable[..., relax.Expr]) -> Converter:
    """Return the converter of `cumsum` or `cumprod`."""

    def convert(operation: Operation, x: relax.Expr, dim: int, **_: object) -> relax.Expr:
        wanted = operation.cast(x)
        axes = axes_of(dim, len(shape_of(wanted)))
        return function(wanted, axes[0], operation.dtype) if axes else wanted

    return convert


def _reduce(
    function: Callable[..., relax.Expr], operation: Operation, x: relax.Expr, dims: Dims, keepdim: bool
) -> relax.Expr:
    rank = len(shape_of(x))
    if not rank:  # one number: the same for all that it could be asked along
        x, rank, dims, keepdim = operation.reshape(x, (1,)), 1, [0], False
    reduced = operation.emit(function(x, axes_of(dims, rank), bool(keepdim)))
    return operation.reshape(reduced, operation.shape)


def _position(function: Callable[..., relax.Expr], operation: Operation, x: relax.Expr, dim: int | None) -> relax.Expr:
    if dtype_of(x) == "bool":
        x = operation.cast(x, "int8")
    shape = shape_of(x)
    if dim is None or not shape:
        return operation.emit(function(operation.reshape(x, (math.prod(shape),)), 0))
    return operation.emit(function(x, dim % len(shape)))
