# SPDX-License-Identifier: Apache-2.0
"""`quantized_decomposed`, the operators of programs that PT2E quantized (torchao's `convert_pt2e`).

    quantize    clamp(round(x * (1 / scale)) + zero, least, most)    as integers; NaN becomes 0 where these are bytes
    dequantize  (q - zero) * scale                                   in float32

`relax/passes/multiply_bytes.py` looks for the second in front of convolutions and linear layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from .operation import Operation, Scalar, constant, known, shape_of


def quantize_per_tensor(
    operation: Operation, x: relax.Expr, scale: Any, zero: Any, least: int, most: int, _: object
) -> relax.Expr:
    """Return integers."""
    inverse = _number(np.float32(1 / _value(scale)), x)
    return _quantized(operation, x, inverse, int(_value(zero)), least, most)


def quantize_per_channel(
    operation: Operation, x: relax.Expr, scales: Any, zeros: Any, axis: int, least: int, most: int, _: object
) -> relax.Expr:
    """Return integers, of an axis with a scale and a zero for each place."""
    inverse = _along(1 / _values(scales).astype(np.float32), axis, x)
    return _quantized(operation, x, inverse, _along(_values(zeros).astype(np.float32), axis, x), least, most)


def dequantize_per_tensor(
    operation: Operation,
    x: relax.Expr,
    scale: Any,
    zero: Any,
    _least: int,
    _most: int,
    _: object,
    out_dtype: object = None,
) -> relax.Expr:
    """Return the numbers that integers stand for."""
    found = int(_value(zero))
    shift = _number(np.float32(found), x) if found else None
    return _dequantized(operation, x, _number(np.float32(_value(scale)), x), shift)


def dequantize_per_channel(
    operation: Operation,
    x: relax.Expr,
    scales: Any,
    zeros: Any,
    axis: int,
    _least: int,
    _most: int,
    _: object,
    out_dtype: object = None,
) -> relax.Expr:
    """Return the numbers that integers stand for, of an axis with a scale and a zero for each place."""
    values = None if zeros is None else _values(zeros).astype(np.float32)
    shift = None if values is None or not values.any() else _along(values, axis, x)
    return _dequantized(operation, x, _along(_values(scales).astype(np.float32), axis, x), shift)


def _quantized(
    operation: Operation, x: relax.Expr, inverse: relax.Expr, zero: relax.Expr | int, least: int, most: int
) -> relax.Expr:
    value = operation.emit(relax.op.round(operation.emit(relax.op.multiply(operation.cast(x, "float32"), inverse))))
    if not isinstance(zero, int) or zero:
        shift = _number(np.float32(zero), x) if isinstance(zero, int) else zero
        value = operation.emit(relax.op.add(value, shift))
    return relax.op.astype(operation.emit(relax.op.clip(value, least, most)), operation.dtype)


def _dequantized(operation: Operation, x: relax.Expr, scale: relax.Expr, shift: relax.Expr | None) -> relax.Expr:
    value = operation.emit(relax.op.astype(x, "float32"))
    if shift is not None:
        value = operation.emit(relax.op.subtract(value, shift))
    return operation.cast(relax.op.multiply(value, scale))


def _values(expression: Any) -> np.ndarray:
    """Return what is known at compile time, as scales and zeros of a converted program are."""
    found = known(expression)
    if found is None:
        raise NotImplementedError("a scale or zero that depends on an input is not supported; quantize statically")
    return found


def _value(number: Scalar | relax.Expr) -> float:
    return float(_values(number).reshape(())) if isinstance(number, relax.Expr) else float(number)


def _number(value: np.floating, x: relax.Expr) -> relax.Expr:
    """Return a number with as many axes as `x`."""
    return constant(np.full((1,) * len(shape_of(x)), value, np.float32))


def _along(values: np.ndarray, axis: int, x: relax.Expr) -> relax.Expr:
    shape = [1] * len(shape_of(x))
    shape[axis] = -1
    return constant(values.reshape(shape))
