# SPDX-License-Identifier: Apache-2.0
"""The type that sums are kept in."""


def accumulator_dtype(dtype: str) -> str:
    """Return `"float32"` for the half types, else `dtype` itself."""
    return "float32" if str(dtype) in ("float16", "bfloat16") else str(dtype)
