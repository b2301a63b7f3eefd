# SPDX-License-Identifier: Apache-2.0
"""Involution as PyTorch operators that `torch.export` keeps whole: `torch.ops.tvm_involution.involution1d` to `3d`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import checked
from ..errors import UserError
from .plain_tensors import check_plain

LIBRARY = torch.library.Library("tvm_involution", "DEF")
SPACE = {1: "W", 2: "HW", 3: "DHW"}
"""the letters of so many spatial axes"""


@checked
def involution1d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`involution2d` along one axis: input (N, C, W), kernel (N, G, KW, OW), result (N, C, OW)."""
    return _call(1, input, kernel, stride, padding, dilation)


@checked
def involution2d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """Aggregate the window of every pixel with that pixel's kernel (equation 4 of arXiv 2103.06255).

    Args:
        input: (N, C, H, W); float16, bfloat16, float32 or float64. Sums of the half types are kept in float32.
        kernel: (N, G, KH, KW, OH, OW) of the same dtype; C must be a multiple of G, and channel c uses group
            c // (C // G).
        stride, padding, dilation: int or (rows, columns).

    Returns:
        (N, C, OH, OW), differentiable by both inputs. Under autocast both are cast to its dtype first, as a
        convolution's are.

    Raises:
        UserError: shapes or dtypes that do not fit, with what was expected and what came.
    """
    return _call(2, input, kernel, stride, padding, dilation)


@checked
def involution3d(
    input: Tensor,
    kernel: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> Tensor:
    """`involution2d` along three axes: input (N, C, D, H, W), kernel (N, G, KD, KH, KW, OD, OH, OW)."""
    return _call(3, input, kernel, stride, padding, dilation)


def _call(axes: int, input: Tensor, kernel: Tensor, *geometry: int | Sequence[int]) -> Tensor:
    check_plain(f"involution{axes}d", input=input, kernel=kernel)
    device = input.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        input, kernel = input.to(dtype), kernel.to(dtype)
    operator = getattr(torch.ops.tvm_involution, f"involution{axes}d")
    return operator(input, kernel, *([v] * axes if isinstance(v, int) else list(v) for v in geometry))


def check_involution(
    axes: int, input: Tensor, kernel: Tensor, stride: Sequence[Any], padding: Sequence[Any], dilation: Sequence[Any]
) -> tuple[Any, ...]:
    """Check the arguments of an involution along so many axes and return the output's size along each.

    Raises:
        UserError: see `involution2d`.
    """
    name, space = f"involution{axes}d", SPACE[axes]
    check_plain(name, input=input, kernel=kernel)
    several = {1: "one for the only axis", 2: "a pair"}.get(axes, f"{axes} of them")
    for word, values, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(values) != axes or min(values) < minimum:
            raise UserError(f"{name}: {word} must be an int or {several} of at least {minimum}, got {list(values)}")
    if input.dim() != 2 + axes or kernel.dim() != 2 + 2 * axes:
        taps, sizes = (", ".join(prefix + axis for axis in space) for prefix in "KO")
        raise UserError(
            f"{name} takes input (N, C, {', '.join(space)}) and kernel (N, G, {taps}, {sizes}), got "
            f"{list(input.shape)} and {list(kernel.shape)}"
        )
    if input.dtype != kernel.dtype or not input.is_floating_point():
        raise UserError(f"{name} takes one floating dtype, got {input.dtype} and {kernel.dtype}")
    n, channels, *size = input.shape
    groups, *kernel_size = kernel.shape[1 : 2 + axes]
    if groups == 0 or channels % groups:
        raise UserError(
            f"{name}: {channels} channels are no multiple of {groups} groups; got input {list(input.shape)}, "
            f"kernel {list(kernel.shape)}"
        )
    out_size = tuple(
        (extent + 2 * pad - step * (taps - 1) - 1) // moved + 1
        for extent, taps, moved, pad, step in zip(size, kernel_size, stride, padding, dilation, strict=True)
    )
    # a size that is still a symbol would become a condition of the exported program
    if any(isinstance(extent, int) and extent < 1 for extent in (*kernel_size, *out_size)):
        raise UserError(
            f"{name}: no window of {kernel_size} with dilation {list(dilation)} is in the padded input, got input "
            f"{list(input.shape)}, kernel {list(kernel.shape)}, padding {list(padding)}"
        )
    if (kernel.shape[0], *kernel.shape[2 + axes :]) != (n, *out_size):
        raise UserError(
            f"{name}: expected kernel ({', '.join(map(str, (n, groups, *kernel_size, *out_size)))}) for input "
            f"{list(input.shape)}, stride {list(stride)}, padding {list(padding)}, dilation {list(dilation)}; got "
            f"{list(kernel.shape)}"
        )
    return out_size


def _windows(
    kernel_size: Sequence[int], out_size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield, for each tap, where in the kernel it is and what of the padded input it sees."""
    for tap in itertools.product(*map(range, kernel_size)):
        starts = [t * step for t, step in zip(tap, dilation, strict=True)]
        seen = [
            slice(start, start + (size - 1) * step + 1, step)
            for start, size, step in zip(starts, out_size, stride, strict=True)
        ]
        yield (slice(None), slice(None), *tap), (..., *seen)


def _pad(input: Tensor, padding: Sequence[int]) -> Tensor:
    return torch.nn.functional.pad(input, [pad for pad in reversed(padding) for _ in range(2)])


def _forward(axes: int, input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """Sum tap by tap: never holds the unfolded input, which is as many times the feature map as there are taps."""
    out_size = check_involution(axes, input, kernel, stride, padding, dilation)
    n, channels = input.shape[:2]
    groups, *kernel_size = kernel.shape[1 : 2 + axes]
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    padded = _pad(input, padding).unflatten(1, (groups, channels // groups))
    total = padded.new_zeros((n, groups, channels // groups, *out_size), dtype=sum_dtype)
    for tap, seen in _windows(kernel_size, out_size, stride, dilation):
        total.addcmul_(padded[seen].to(sum_dtype), kernel[tap].unsqueeze(2).to(sum_dtype))
    return total.flatten(1, 2).to(input.dtype)


def _setup_context(ctx, inputs, output) -> None:
    input, kernel, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(input, kernel)


def _backward(ctx, grad: Tensor):
    input, kernel = ctx.saved_tensors
    size = input.shape[2:]
    groups, *kernel_size = kernel.shape[1 : 2 + len(size)]
    group_channels = input.shape[1] // groups
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    padded = _pad(input, ctx.padding).unflatten(1, (groups, group_channels)).to(sum_dtype)
    grouped = grad.unflatten(1, (groups, group_channels)).to(sum_dtype)
    grad_padded, grad_kernel = torch.zeros_like(padded), torch.empty_like(kernel)
    for tap, seen in _windows(kernel_size, grad.shape[2:], ctx.stride, ctx.dilation):
        grad_padded[seen] += grouped * kernel[tap].unsqueeze(2).to(sum_dtype)
        grad_kernel[tap] = (grouped * padded[seen]).sum(2)
    inside: tuple[Any, ...] = (..., *(slice(pad, pad + extent) for pad, extent in zip(ctx.padding, size, strict=True)))
    grad_input = grad_padded[inside].flatten(1, 2)
    return grad_input.to(input.dtype), grad_kernel, None, None, None


def _register(axes: int) -> None:
    name = f"involution{axes}d"
    LIBRARY.define(
        f"{name}(Tensor input, Tensor kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor"
    )

    def forward(input, kernel, stride, padding, dilation):
        return _forward(axes, input, kernel, stride, padding, dilation)

    def fake(input, kernel, stride, padding, dilation):
        out_size = check_involution(axes, input, kernel, stride, padding, dilation)
        return input.new_empty(*input.shape[:2], *out_size)

    for key in ("CPU", "CUDA"):
        torch.library.impl(LIBRARY, name, key)(forward)
    torch.library.register_fake(f"tvm_involution::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"tvm_involution::{name}", _backward, setup_context=_setup_context, lib=LIBRARY)


for _axes in SPACE:
    _register(_axes)
