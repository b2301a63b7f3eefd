# SPDX-License-Identifier: Apache-2.0
"""How the tensors of an involution lie in memory: with channels first or last.

With channels last feature maps are (N, *size, C) and kernels (N, *out_size, G, *kernel_size), as convolutions make
them; in torch both keep their shapes and have other strides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def lies_channels_last(input: Tensor) -> bool:
    """Return whether a feature map (N, C, *size) has its channels last in memory, and not first as well."""
    layout = _FORMATS.get(input.dim())
    return layout is not None and not input.is_contiguous() and input.is_contiguous(memory_format=layout)


def as_feature_map(tensor: Tensor, channels_last: bool) -> Tensor:
    """Return a feature map in this layout."""
    return tensor.contiguous(memory_format=_FORMATS[tensor.dim()] if channels_last else torch.contiguous_format)


def empty_feature_map(like: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    """Return a new feature map of this `size` with the batch, channels and dtype of `like`."""
    layout = _FORMATS[like.dim()] if channels_last else torch.contiguous_format
    return torch.empty((*like.shape[:2], *size), dtype=like.dtype, device=like.device, memory_format=layout)


def empty_kernel(grad: Tensor, groups: int, kernel_size: Sequence[int], channels_last: bool) -> Tensor:
    """Return a new kernel (N, G, *kernel_size, *out_size) for an output like `grad`."""
    n, out_size, axes = grad.shape[0], grad.shape[2:], len(kernel_size)
    if not channels_last:
        return grad.new_empty(n, groups, *kernel_size, *out_size)
    made = grad.new_empty(n, *out_size, groups, *kernel_size)
    return made.permute(0, *range(1 + axes, 2 + 2 * axes), *range(1, 1 + axes))


def feature_map_in_memory(tensor: Tensor, channels_last: bool) -> Tensor:
    """Return a feature map's numbers in their order in memory; a copy where it lies otherwise."""
    return (tensor.movedim(1, -1) if channels_last else tensor).contiguous()


def kernel_in_memory(kernel: Tensor, channels_last: bool) -> Tensor:
    """Return a kernel's numbers in their order in memory; a copy where it lies otherwise."""
    axes = kernel.dim() // 2 - 1
    if channels_last:
        kernel = kernel.permute(0, *range(2 + axes, 2 + 2 * axes), *range(1, 2 + axes))
    return kernel.contiguous()
