# SPDX-License-Identifier: Apache-2.0
"""Tensors computed by loops that no tensor expression can say, since their extents depend on data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx


def computed_by_loops(
    shape: Sequence[Any], dtype: str, inputs: Sequence[te.Tensor], body: Callable[..., tirx.Stmt]
) -> te.Tensor:
    """Return a tensor that `body` computes.

    Args:
        body: takes the inputs' buffers and the output's, all compact; returns the statement. Blocks in it can be
            scheduled like any others.
    """
    return te.extern(
        shape,
        inputs,
        lambda ins, outs: body([*ins, outs[0]]),
        name="root",  # an extern's block is its program's root, which schedules look for under this name
        dtype=dtype,
        in_buffers=[tirx.decl_buffer(x.shape, x.dtype, x.op.name) for x in inputs],
        out_buffers=[tirx.decl_buffer(shape, dtype, "output")],
    )
