# SPDX-License-Identifier: Apache-2.0
"""Distances between points in the p-norm."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax

from .operation import Operation, constant, shape_of


def between(operation: Operation, x: relax.Expr, y: relax.Expr, p: float, _: int | None) -> relax.Expr:
    """The distances (..., P, R) of points (..., P, M) from points (..., R, M)."""
    rows = operation.emit(relax.op.expand_dims(x, len(shape_of(x)) - 1))
    columns = operation.emit(relax.op.expand_dims(y, len(shape_of(y)) - 2))
    return _length(operation, operation.emit(relax.op.subtract(rows, columns)), p)


def among(operation: Operation, x: relax.Expr, p: float) -> relax.Expr:
    """The distances of each pair of points (P, M)."""
    first, second = np.triu_indices(shape_of(x)[0], 1)
    rows, columns = (relax.op.take(x, constant(places), 0, mode="clip") for places in (first, second))
    return _length(operation, operation.emit(relax.op.subtract(rows, columns)), p)


def _length(operation: Operation, difference: relax.Expr, p: float) -> relax.Expr:
    axis = [len(shape_of(difference)) - 1]
    size = operation.emit(relax.op.abs(difference))
    if p == 0:
        apart = operation.emit(relax.op.not_equal(size, operation.cast(0)))
        return relax.op.sum(operation.cast(apart), axis)
    if p == 1:
        return relax.op.sum(size, axis)
    if p == 2:
        return relax.op.sqrt(relax.op.sum(relax.op.multiply(size, size), axis))
    if math.isinf(p):
        return relax.op.max(size, axis)
    raised = relax.op.power(size, operation.cast(p))
    return relax.op.power(relax.op.sum(raised, axis), operation.cast(1 / p))
