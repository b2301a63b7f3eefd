# SPDX-License-Identifier: Apache-2.0
"""Batch, group and layer norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tvm import relax

from .operation import Operation, shape_of


def batch_norm(
    operation: Operation,
    x: relax.Expr,
    weight: relax.Expr | None,
    bias: relax.Expr | None,
    mean: relax.Expr,
    variance: relax.Expr,
    momentum: float,
    epsilon: float,
) -> list[relax.Expr]:
    """`nn.batch_norm` by the statistics of training, which come back as nothing: nobody may look at them."""
    channels = shape_of(x)[1]
    result = operation.emit(
        relax.op.nn.batch_norm(
            x,
            _or_constant(operation, weight, 1, (channels,)),
            _or_constant(operation, bias, 0, (channels,)),
            mean,
            variance,
            axis=1,
            epsilon=epsilon,
            scale=weight is not None,
            center=bias is not None,
            momentum=momentum,
            training=False,
        )
    )
    return [operation.emit(result[0])]


def norm_by_batch(
    operation: Operation,
    x: relax.Expr,
    weight: relax.Expr | None,
    bias: relax.Expr | None,
    _: bool,
    __: float,
    epsilon: float,
) -> list[relax.Expr]:
    """Each channel by its own statistics: batch norm without others, and what torch makes of an instance norm."""
    channels = shape_of(x)[1]
    normed = relax.op.nn.instance_norm(
        x,
        _or_constant(operation, weight, 1, (channels,)),
        _or_constant(operation, bias, 0, (channels,)),
        channel_axis=1,
        axes=[0, *range(2, len(shape_of(x)))],
        epsilon=epsilon,
    )
    return [normed]


def group_norm(
    operation: Operation,
    x: relax.Expr,
    weight: relax.Expr | None,
    bias: relax.Expr | None,
    _: int,
    channels: int,
    __: int,
    groups: int,
    epsilon: float,
) -> list[relax.Expr]:
    """`nn.group_norm`; nobody may look at the statistics."""
    shape = shape_of(x)
    normed = relax.op.nn.group_norm(
        x,
        _or_constant(operation, weight, 1, (channels,)),
        _or_constant(operation, bias, 0, (channels,)),
        num_groups=groups,
        channel_axis=1,
        axes=list(range(2, len(shape))),
        epsilon=epsilon,
    )
    return [normed]


def layer_norm(
    operation: Operation,
    x: relax.Expr,
    normalized_shape: Sequence[int],
    weight: relax.Expr | None,
    bias: relax.Expr | None,
    epsilon: float,
) -> list[relax.Expr]:
    """`nn.layer_norm`; nobody may look at the statistics."""
    normed = relax.op.nn.layer_norm(
        x,
        _or_constant(operation, weight, 1, normalized_shape),
        _or_constant(operation, bias, 0, normalized_shape),
        axes=list(range(-len(normalized_shape), 0)),
        epsilon=epsilon,
    )
    return [normed]


def _or_constant(operation: Operation, value: relax.Expr | None, otherwise: float, shape: Sequence[int]) -> relax.Expr:
    if value is not None:
        return value
    return relax.const(np.full(tuple(shape), otherwise), operation.dtype)
