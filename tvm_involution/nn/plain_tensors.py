# SPDX-License-Identifier: Apache-2.0
"""The check of tensors that every function of this folder begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError


def check_plain(name: str, **tensors: Tensor) -> None:
    """Raise `UserError` where a tensor is no array of numbers, or they do not lie on one device."""
    for key, tensor in tensors.items():
        if tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided:
            kind = "nested" if tensor.is_nested else "quantized" if tensor.is_quantized else str(tensor.layout)
            raise UserError(f"{name}: {key} must be a plain tensor, got one that is {kind}; convert it to a dense one")
    if len({tensor.device for tensor in tensors.values()}) > 1:
        got = ", ".join(f"{key} on {tensor.device}" for key, tensor in tensors.items())
        raise UserError(f"{name}: all tensors must be on one device, got {got}; move them with .to()")


def check_floating(name: str, **tensors: Tensor) -> None:
    """Raise `UserError` where tensors are not all of one floating dtype."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not all(dtype.is_floating_point for dtype in dtypes):
        got = ", ".join(f"{key} {tensor.dtype}" for key, tensor in tensors.items())
        raise UserError(f"{name} takes one floating dtype, got {got}")


def check_integers(name: str, **tensors: Tensor) -> None:
    """Raise `UserError` where a tensor holds no integers."""
    for key, tensor in tensors.items():
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise UserError(f"{name}: {key} must be of an integer dtype, got {tensor.dtype}")


def wide(*tensors: Tensor) -> list[Tensor]:
    """Return tensors of a half type in float32, in which places in a picture are exact, and others as they are."""
    return [tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
