# SPDX-License-Identifier: Apache-2.0
"""The type that sums are kept in, and the way back from it."""

from tvm import te


def accumulator_dtype(dtype: str) -> str:
    """Return `"float32"` for the half types, `"int32"` for bytes, else `dtype` itself."""
    if str(dtype) in ("int8", "uint8"):
        return "int32"
    return "float32" if str(dtype) in ("float16", "bfloat16") else str(dtype)


def cast_sums(sums: te.Tensor, dtype: str, name: str) -> te.Tensor:
    """Return sums in `dtype` by a block called `name`; `sums` itself where it has that type already."""
    if str(sums.dtype) == str(dtype):
        return sums
    return te.compute(sums.shape, lambda *index: sums(*index).astype(dtype), name=name, tag="elemwise")
