# SPDX-License-Identifier: Apache-2.0
"""Local self-attention."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ...relax.operators import local_attention as operator
from .operation import Operation


def local_attention(operation: Operation, *arguments: Any) -> relax.Expr:
    """`tvm_involution::local_attention2d` -> `tvm_involution.local_attention2d`."""
    return operator.local_attention2d(*arguments)
