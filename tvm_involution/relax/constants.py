# SPDX-License-Identifier: Apache-2.0
"""Weights between Relax constants and NumPy; rewriting them here costs no code generation."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from tvm import relax
from tvm.ir import GenericConst

from ..runtime.arrays import numpy_dtype
from .dtypes import HALF_TYPES


def to_float(value: GenericConst) -> np.ndarray:
    """Return the constant as float64, in which weights are folded whatever their dtype."""
    return value.value.numpy().astype("float64")


def is_number(value: relax.Expr) -> bool:
    """Return whether `value` is a constant of one element."""
    return isinstance(value, GenericConst) and all(int(d) == 1 for d in value.ty.shape.values)


def constant(value: np.ndarray, dtype: str) -> GenericConst:
    """Return `value` as a Relax constant of `dtype`; what is finite stays so: a mask's -1e9 is -65504 in float16."""
    own = numpy_dtype(str(dtype))
    if str(dtype) in HALF_TYPES:
        largest = float(ml_dtypes.finfo(own).max)
        value = np.where(np.isfinite(value), np.clip(value, -largest, largest), value)
    # not ascontiguousarray, which makes a vector of a scalar
    return relax.const(value.astype(own, order="C"), str(dtype))
