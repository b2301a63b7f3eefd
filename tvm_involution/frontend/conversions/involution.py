# SPDX-License-Identifier: Apache-2.0
"""Involution, with its kernel packed as Relax has it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tvm import relax

from ...relax.operators import involution as operator
from .operation import Operation


def involution2d(
    operation: Operation,
    x: relax.Expr,
    kernel: relax.Expr,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> relax.Expr:
    """`tvm_involution::involution2d` -> `tvm_involution.involution2d`."""
    n, groups, kh, kw, oh, ow = operation.node.args[1].meta["val"].shape
    packed = _packed(operation, kernel, (n, groups * kh * kw, oh, ow))
    return operator.involution2d(x, packed, (int(kh), int(kw)), stride, padding, dilation)


def _packed(operation: Operation, kernel: relax.Expr, shape: Sequence[int]) -> relax.Expr:
    """Return the kernel as (N, G*KH*KW, OH, OW), past the view that gave it six dimensions if there is one.

    Going past the view keeps the span convolution's output visible to layout conversion.
    """
    source = operation.node.args[1]
    while source.target in (torch.ops.aten.view.default, torch.ops.aten.reshape.default):
        source = source.args[0]
        if tuple(source.meta["val"].shape) == tuple(shape):
            return operation.value_of(source)
    return operation.reshape(kernel, shape)
