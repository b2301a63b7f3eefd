# SPDX-License-Identifier: Apache-2.0
"""Sorting along an axis, and what is read from sorted values."""

from __future__ import annotations

import math

from tvm import relax

from .operation import Operation, shape_of


def sort(operation: Operation, x: relax.Expr, dim: int = -1, descending: bool = False, **_: object) -> list[relax.Expr]:
    """`argsort`, which is stable in TVM, and a gather."""
    shape = shape_of(x)
    line = operation.reshape(x, shape or (1,))
    values, order = _sorted(operation, line, dim % max(len(shape), 1), descending)
    return [operation.reshape(values, shape), operation.reshape(order, shape)]


def sort_stable(
    operation: Operation, x: relax.Expr, dim: int = -1, descending: bool = False, **_: object
) -> list[relax.Expr]:
    """`sort` of the schema whose arguments stand by name."""
    return sort(operation, x, dim, descending)


def topk(
    operation: Operation, x: relax.Expr, k: int, dim: int = -1, largest: bool = True, _: bool = True
) -> list[relax.Expr]:
    """The k largest or smallest in order, and where they are."""
    shape = shape_of(x)
    if not shape:
        return [x, relax.const(0, "int64")]
    found = operation.emit(
        relax.op.topk(x, k=k, axis=dim % len(shape), largest=largest, ret_type="both", dtype="int64")
    )
    return [found[0], found[1]]


def kth_value(operation: Operation, x: relax.Expr, k: int, dim: int = -1, keepdim: bool = False) -> list[relax.Expr]:
    """The k-th smallest of an axis and where it is."""
    shape = shape_of(x) or (1,)
    axis = dim % len(shape)
    values, order = _sorted(operation, operation.reshape(x, shape), axis, False)
    chosen = []
    for tensor in (values, order):
        one = relax.op.take(tensor, relax.const(k - 1, "int64"), axis, mode="clip")
        chosen.append(operation.reshape(one, operation.shape))
    return chosen


def median_along(operation: Operation, x: relax.Expr, dim: int, keepdim: bool = False) -> list[relax.Expr]:
    """The lower of the middle values of an axis and where it is."""
    count = (shape_of(x) or (1,))[dim]
    return kth_value(operation, x, (count + 1) // 2, dim, keepdim)


def median(operation: Operation, x: relax.Expr) -> relax.Expr:
    """The lower of the middle values of all."""
    count = math.prod(shape_of(x))
    values, _ = _sorted(operation, operation.reshape(x, (count,)), 0, False)
    return relax.op.take(values, relax.const((count - 1) // 2, "int64"), 0, mode="clip")


def _sorted(operation: Operation, x: relax.Expr, axis: int, descending: bool) -> tuple[relax.Expr, relax.Expr]:
    order = operation.emit(relax.op.argsort(x, axis, descending, dtype="int64"))
    return operation.emit(relax.op.gather_elements(x, order, axis=axis)), order
