# SPDX-License-Identifier: Apache-2.0
"""Involution, with its kernel packed as Relax has it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from tvm import relax

from ...nn.ops import SPACE
from ...relax.operators import involution as operator
from .operation import Operation


def involution(
    operation: Operation,
    x: relax.Expr,
    kernel: relax.Expr,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> relax.Expr:
    """`tvm_involution::involution1d` to `3d` -> `tvm_involution.involution1d` to `3d`."""
    n, groups, *rest = (int(size) for size in operation.node.args[1].meta["val"].shape)
    axes = len(rest) // 2
    kernel_size, out_size = rest[:axes], rest[axes:]
    packed = _packed(operation, kernel, (n, groups * math.prod(kernel_size), *out_size))
    return operator.involution(x, packed, kernel_size, stride, padding, dilation, f"NC{SPACE[axes]}")


def _packed(operation: Operation, kernel: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    """Return the kernel as (N, G*taps, *out_size), past the view that gave each axis of taps a dimension, if any.

    Going past the view keeps the span convolution's output visible to layout conversion.
    """
    source = operation.node.args[1]
    while source.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        source = source.args[0]
        if tuple(source.meta["val"].shape) == tuple(shape):
            return operation.value_of(source)
    return operation.reshape(kernel, shape)
