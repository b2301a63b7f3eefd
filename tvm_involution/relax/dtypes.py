# SPDX-License-Identifier: Apache-2.0
"""The element types of tensors, and those that calls name in their attributes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

HALF_TYPES = ("float16", "bfloat16")


def tensor_dtype(ty: tvm.ir.Type) -> str:
    """Return the element type of a tensor's type; an empty string for every other type."""
    return str(ty.dtype) if isinstance(ty, relax.TensorType) and ty.dtype is not None else ""


def has_out_dtype(call: relax.Call) -> bool:
    """Return whether the operator takes a type for its sums that is not that of its arguments."""
    return "out_dtype" in _fields(call.attrs)


def with_attribute(attrs: tvm.ir.Attrs, name: str, value: Any) -> tvm.ir.Attrs:
    """Return a copy of `attrs` with another value of `name`."""
    values = {field: getattr(attrs, field) for field in _fields(attrs)} | {name: value}
    return tvm.ir.make_node(type(attrs).__tvm_ffi_type_info__.type_key, **values)


def retyped(attrs: tvm.ir.Attrs | None, types: Mapping[str, str]) -> tvm.ir.Attrs | None:
    """Return `attrs` that ask for an output of type `types[t]` where they ask for one of type t."""
    for name in ("dtype", "out_dtype"):
        wanted = types.get(str(getattr(attrs, name))) if name in _fields(attrs) else None
        if wanted is not None:
            attrs = with_attribute(attrs, name, tvm_ffi.dtype(wanted))
    return attrs


def in_half(dtype: str) -> dict[str, str]:
    """Return what becomes of the types of a network that is taken to the half type `dtype`."""
    return {"float32": dtype, "float64": "float32"}


def _fields(attrs: tvm.ir.Attrs | None) -> list[str]:
    if attrs is None or isinstance(attrs, tvm.ir.DictAttrs):
        return []
    return [field.name for field in type(attrs).__tvm_ffi_type_info__.fields]
