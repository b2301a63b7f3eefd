# SPDX-License-Identifier: Apache-2.0
"""Tensors of one number; those of many that depend on no input are made by torch itself while importing."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from .operation import Converter, Operation, Scalar


def filled(value: Scalar) -> Converter:
    """Return the converter of a tensor of a given number, whatever the arguments: their shape is the result's."""
    return lambda operation, *_, **__: _full(operation, value)


def full(operation: Operation, _: Sequence[int] | relax.Expr, value: Scalar | relax.Expr, **__: object) -> relax.Expr:
    """A tensor of one number; also `full_like`, which takes its shape from a tensor, and `fill`."""
    return _full(operation, value)


def _full(operation: Operation, value: Scalar | relax.Expr) -> relax.Expr:
    if isinstance(value, relax.Expr):
        return operation.broadcast(operation.cast(value), operation.shape)
    return relax.op.full(list(operation.shape), operation.cast(value), operation.dtype)
