# SPDX-License-Identifier: Apache-2.0
"""Activations that torch's decomposition leaves whole."""

from __future__ import annotations

from tvm import relax

from .operation import Operation, Scalar, axes_of, shape_of


def relu(operation: Operation, x: relax.Expr) -> relax.Expr:
    """`relu`."""
    return relax.op.nn.relu(x)


def leaky_relu(operation: Operation, x: relax.Expr, negative_slope: Scalar) -> relax.Expr:
    """x where it is positive, else x times the slope, which TVM wants to be positive."""
    negative = relax.op.multiply(x, operation.cast(negative_slope))
    return relax.op.where(relax.op.greater(x, operation.cast(0)), x, negative)


def hardtanh(operation: Operation, x: relax.Expr, low: Scalar, high: Scalar) -> relax.Expr:
    """`clip`."""
    return relax.op.clip(x, low, high)


def gelu(operation: Operation, x: relax.Expr, approximate: str) -> relax.Expr:
    """`nn.gelu` or `nn.gelu_tanh`."""
    return relax.op.nn.gelu_tanh(x) if approximate == "tanh" else relax.op.nn.gelu(x)


def elu(operation: Operation, x: relax.Expr, alpha: Scalar, scale: Scalar, input_scale: Scalar) -> relax.Expr:
    """scale * x above 0, scale * alpha * (exp(input_scale * x) - 1) below: ELU, SELU and CELU."""
    inner = x if input_scale == 1 else relax.op.multiply(x, operation.cast(input_scale))
    below = relax.op.multiply(relax.op.subtract(relax.op.exp(inner), operation.cast(1)), operation.cast(alpha * scale))
    above = x if scale == 1 else relax.op.multiply(x, operation.cast(scale))
    return relax.op.where(relax.op.greater(x, operation.cast(0)), above, below)


def softmax(operation: Operation, x: relax.Expr, dim: int, _: bool) -> relax.Expr:
    """`nn.softmax`."""
    axes = axes_of(dim, len(shape_of(x)))
    return relax.op.nn.softmax(operation.cast(x), axes[0]) if axes else relax.op.ones_like(x)


def log_softmax(operation: Operation, x: relax.Expr, dim: int, _: bool) -> relax.Expr:
    """`nn.log_softmax`."""
    axes = axes_of(dim, len(shape_of(x)))
    return relax.op.nn.log_softmax(operation.cast(x), axes[0]) if axes else relax.op.zeros_like(x)
