# SPDX-License-Identifier: Apache-2.0
"""Involution as a PyTorch operator, `torch.ops.tvm_involution.involution2d`, that `torch.export` keeps whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import checked
from ..errors import UserError
from .plain_tensors import check_plain

LIBRARY = torch.library.Library("tvm_involution", "DEF")
LIBRARY.define(
    "involution2d(Tensor input, Tensor kernel, SymInt[] stride, SymInt[] padding, SymInt[] dilation) -> Tensor"
)


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
    check_plain("involution2d", input=input, kernel=kernel)
    device = input.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    if autocast and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        input, kernel = input.to(dtype), kernel.to(dtype)
    return torch.ops.tvm_involution.involution2d(input, kernel, _pair(stride), _pair(padding), _pair(dilation))


def check_involution2d(
    input: Tensor, kernel: Tensor, stride: Sequence[Any], padding: Sequence[Any], dilation: Sequence[Any]
) -> tuple[Any, Any]:
    """Check the arguments and return the output's (OH, OW).

    Raises:
        UserError: see `involution2d`.
    """
    for name, pair, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(pair) != 2 or min(pair) < minimum:
            raise UserError(f"involution2d: {name} must be an int or a pair of at least {minimum}, got {list(pair)}")
    if input.dim() != 4 or kernel.dim() != 6:
        raise UserError(
            f"involution2d takes input (N, C, H, W) and kernel (N, G, KH, KW, OH, OW), got {list(input.shape)} and "
            f"{list(kernel.shape)}"
        )
    if input.dtype != kernel.dtype or not input.is_floating_point():
        raise UserError(f"involution2d takes one floating dtype, got {input.dtype} and {kernel.dtype}")
    n, channels, height, width = input.shape
    groups, kernel_h, kernel_w = kernel.shape[1:4]
    if groups == 0 or channels % groups:
        raise UserError(
            f"involution2d: {channels} channels are no multiple of {groups} groups; got input {list(input.shape)}, "
            f"kernel {list(kernel.shape)}"
        )
    out_h = (height + 2 * padding[0] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width + 2 * padding[1] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    if (kernel.shape[0], kernel.shape[4], kernel.shape[5]) != (n, out_h, out_w):
        raise UserError(
            f"involution2d: expected kernel ({n}, {groups}, {kernel_h}, {kernel_w}, {out_h}, {out_w}) for input "
            f"{list(input.shape)}, stride {list(stride)}, padding {list(padding)}, dilation {list(dilation)}; got "
            f"{list(kernel.shape)}"
        )
    return out_h, out_w


@torch.library.register_fake("tvm_involution::involution2d", lib=LIBRARY)
def _fake(input, kernel, stride, padding, dilation):
    out_h, out_w = check_involution2d(input, kernel, stride, padding, dilation)
    return input.new_empty(input.shape[0], input.shape[1], out_h, out_w)


def _windows(kernel_size: Sequence[int], out_size: Sequence[int], stride, dilation):
    """Yield (u, v, the rows and columns of the padded input that tap (u, v) sees as slices)."""
    for u in range(kernel_size[0]):
        for v in range(kernel_size[1]):
            row, column = u * dilation[0], v * dilation[1]
            rows = slice(row, row + (out_size[0] - 1) * stride[0] + 1, stride[0])
            columns = slice(column, column + (out_size[1] - 1) * stride[1] + 1, stride[1])
            yield u, v, rows, columns


def _pad(input: Tensor, padding) -> Tensor:
    return torch.nn.functional.pad(input, (padding[1], padding[1], padding[0], padding[0]))


def _forward(input: Tensor, kernel: Tensor, stride, padding, dilation) -> Tensor:
    """Sum tap by tap: never holds the unfolded input, which is KH*KW times the feature map."""
    out_size = check_involution2d(input, kernel, stride, padding, dilation)
    n, channels = input.shape[:2]
    groups, *kernel_size = kernel.shape[1:4]
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    padded = _pad(input, padding).unflatten(1, (groups, channels // groups))
    total = padded.new_zeros((n, groups, channels // groups, *out_size), dtype=sum_dtype)
    for u, v, rows, columns in _windows(kernel_size, out_size, stride, dilation):
        window, weight = padded[..., rows, columns], kernel[:, :, None, u, v]
        total.addcmul_(window.to(sum_dtype), weight.to(sum_dtype))
    return total.flatten(1, 2).to(input.dtype)


for _key in ("CPU", "CUDA"):
    torch.library.impl(LIBRARY, "involution2d", _key)(_forward)


def _setup_context(ctx, inputs, output) -> None:
    input, kernel, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(input, kernel)


def _backward(ctx, grad: Tensor):
    input, kernel = ctx.saved_tensors
    groups, *kernel_size = kernel.shape[1:4]
    group_channels = input.shape[1] // groups
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    padded = _pad(input, ctx.padding).unflatten(1, (groups, group_channels)).to(sum_dtype)
    grouped = grad.unflatten(1, (groups, group_channels)).to(sum_dtype)
    grad_padded, grad_kernel = torch.zeros_like(padded), torch.empty_like(kernel)
    for u, v, rows, columns in _windows(kernel_size, grad.shape[2:], ctx.stride, ctx.dilation):
        grad_padded[..., rows, columns] += grouped * kernel[:, :, None, u, v].to(sum_dtype)
        grad_kernel[:, :, u, v] = (grouped * padded[..., rows, columns]).sum(2)
    (pad_h, pad_w), (height, width) = ctx.padding, input.shape[2:]
    grad_input = grad_padded[..., pad_h : pad_h + height, pad_w : pad_w + width].flatten(1, 2)
    return grad_input.to(input.dtype), grad_kernel, None, None, None


torch.library.register_autograd("tvm_involution::involution2d", _backward, setup_context=_setup_context, lib=LIBRARY)


def _pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
