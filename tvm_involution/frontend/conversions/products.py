# SPDX-License-Identifier: Apache-2.0
"""Matrix products and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax

from ...nn.ops import SPACE
from .operation import Operation, Scalar, shape_of

_CONVOLUTIONS = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}
_TRANSPOSED = {1: relax.op.nn.conv1d_transpose, 2: relax.op.nn.conv2d_transpose, 3: relax.op.nn.conv3d_transpose}


def matmul(operation: Operation, x: relax.Expr, y: relax.Expr) -> relax.Expr:
    """`matmul`, of matrices or of batches of them; sums of nothing are 0."""
    if 0 in shape_of(x):
        return relax.op.zeros(operation.shape, operation.dtype)
    return relax.op.matmul(operation.cast(x), operation.cast(y), out_dtype=operation.dtype)


def add_matmul(
    operation: Operation, bias: relax.Expr, x: relax.Expr, y: relax.Expr, beta: Scalar = 1, alpha: Scalar = 1
) -> relax.Expr:
    """beta * bias + alpha * x @ y; a beta of 0 leaves the bias out, whatever is in it."""
    product = matmul(operation, x, y)
    if alpha != 1:
        product = relax.op.multiply(product, operation.cast(alpha))
    if beta == 0:
        return product
    if beta != 1:
        bias = relax.op.multiply(bias, operation.cast(beta))
    return relax.op.add(bias, product)


def add_batches(
    operation: Operation, bias: relax.Expr, x: relax.Expr, y: relax.Expr, beta: Scalar = 1, alpha: Scalar = 1
) -> relax.Expr:
    """beta * bias + alpha * the sum of a batch of products."""
    product = operation.emit(relax.op.matmul(x, y, out_dtype=operation.dtype))
    product = relax.op.sum(product, [0])
    if alpha != 1:
        product = relax.op.multiply(product, operation.cast(alpha))
    if beta == 0:
        return product
    return relax.op.add(bias if beta == 1 else relax.op.multiply(bias, operation.cast(beta)), product)


def trilinear(
    operation: Operation,
    x: relax.Expr,
    y: relax.Expr,
    z: relax.Expr,
    new_in_x: Sequence[int],
    new_in_y: Sequence[int],
    new_in_z: Sequence[int],
    summed: Sequence[int],
    _: int = 1,
) -> relax.Expr:
    """The product of three tensors with new axes, summed along some: `nn.Bilinear`."""
    widened = []
    for tensor, axes in ((x, new_in_x), (y, new_in_y), (z, new_in_z)):
        for axis in sorted(axes):
            tensor = operation.emit(relax.op.expand_dims(tensor, axis))
        widened.append(tensor)
    first, second, third = widened
    return relax.op.sum(relax.op.multiply(relax.op.multiply(first, second), third), list(summed))


def convolution(
    operation: Operation,
    x: relax.Expr,
    weight: relax.Expr,
    bias: relax.Expr | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> relax.Expr:
    """`nn.conv1d` to `nn.conv3d_transpose`, with the bias added."""
    rank = len(shape_of(weight)) - 2
    unbatched = len(shape_of(x)) == rank + 1
    if unbatched:
        x = operation.reshape(x, (1, *shape_of(x)))
    shared = {
        "strides": _each(stride, rank),
        "padding": _each(padding, rank),
        "dilation": _each(dilation, rank),
        "groups": groups,
        "data_layout": f"NC{SPACE[rank]}",
        "out_dtype": operation.dtype,
    }
    if transposed:
        call = _TRANSPOSED[rank](
            x, weight, output_padding=_each(output_padding, rank), kernel_layout=f"IO{SPACE[rank]}", **shared
        )
    else:
        call = _CONVOLUTIONS[rank](x, weight, kernel_layout=f"OI{SPACE[rank]}", **shared)
    result = operation.emit(call)
    if bias is not None:
        result = operation.emit(relax.op.add(result, relax.op.reshape(bias, (1, -1, *(1,) * rank))))
    return operation.reshape(result, operation.shape)


def _each(values: Sequence[int], rank: int) -> list[int]:
    return [int(value) for value in values] * (rank if len(values) == 1 else 1)
