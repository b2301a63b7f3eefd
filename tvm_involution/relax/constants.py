# SPDX-License-Identifier: Apache-2.0
"""Weights between Relax constants and NumPy; rewriting them here costs no code generation."""

from __future__ import annotations

import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from ..runtime.arrays import numpy_dtype


def to_float(value: GenericConst) -> np.ndarray:
    """Return the constant as float64, in which weights are folded whatever their dtype."""
    return value.value.numpy().astype("float64")


def constant(value: np.ndarray, dtype: str) -> GenericConst:
    """Return `value` as a Relax constant of `dtype`."""
    return relax.const(np.ascontiguousarray(value.astype(numpy_dtype(str(dtype)))), str(dtype))
