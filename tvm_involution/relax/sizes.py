# SPDX-License-Identifier: Apache-2.0
"""How large tensors are."""

from __future__ import annotations

import math

import tvm
from tvm import relax


def tensor_bytes(ty: relax.Type) -> int:
    """Return the bytes of a tensor; sizes that are not known count as 1, what is no tensor of known rank as 0."""
    if not isinstance(ty, relax.TensorType) or not isinstance(ty.shape, relax.ShapeExpr):
        return 0
    sizes = [int(d) if isinstance(d, tvm.tirx.IntImm) else 1 for d in ty.shape.values]
    return math.prod(sizes) * tvm.DataType(str(ty.dtype)).bits // 8
