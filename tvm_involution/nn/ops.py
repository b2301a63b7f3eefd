# SPDX-License-Identifier: Apache-2.0
"""Involution as PyTorch operators that `torch.export` keeps whole: `torch.ops.tvm_involution.involution1d` to `3d`."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import checked
from ..errors import UserError
from .compiled_kernels import compiled
from .memory_layout import as_feature_map, empty_feature_map, empty_kernel, lies_channels_last
from .plain_tensors import check_plain

LIBRARY = torch.library.Library("tvm_involution", "DEF")
SPACE = {1: "W", 2: "HW", 3: "DHW"}
"""the letters of so many spatial axes"""
_OPERATORS = ("", "_grad_input", "_grad_kernel")


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
    last = lies_channels_last(input)
    computed = compiled("involution", input, kernel, input.shape[2:], kernel_size, stride, padding, dilation, last)
    if computed is not None:
        return computed
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    padded = _pad(input, padding).unflatten(1, (groups, channels // groups))
    total = padded.new_zeros((n, groups, channels // groups, *out_size), dtype=sum_dtype)
    for tap, seen in _windows(kernel_size, out_size, stride, dilation):
        total.addcmul_(padded[seen].to(sum_dtype), kernel[tap].unsqueeze(2).to(sum_dtype))
    return as_feature_map(total.flatten(1, 2).to(input.dtype), last)


def _grad_input(axes: int, grad: Tensor, kernel: Tensor, size, stride, padding, dilation, last: bool) -> Tensor:
    """Return the gradient (N, C, *size) by the input."""
    groups, *kernel_size = kernel.shape[1 : 2 + axes]
    computed = compiled("grad_input", grad, kernel, size, kernel_size, stride, padding, dilation, last)
    if computed is not None:
        return computed
    sum_dtype = torch.promote_types(grad.dtype, torch.float32)
    grouped = grad.unflatten(1, (groups, grad.shape[1] // groups)).to(sum_dtype)
    padded = grouped.new_zeros((*grouped.shape[:3], *(e + 2 * pad for e, pad in zip(size, padding, strict=True))))
    for tap, seen in _windows(kernel_size, grad.shape[2:], stride, dilation):
        padded[seen] += grouped * kernel[tap].unsqueeze(2).to(sum_dtype)
    inside: tuple[Any, ...] = (..., *(slice(pad, pad + extent) for pad, extent in zip(padding, size, strict=True)))
    return as_feature_map(padded[inside].flatten(1, 2).to(grad.dtype), last)


def _grad_kernel(
    axes: int, grad: Tensor, input: Tensor, groups, kernel_size, stride, padding, dilation, last
) -> Tensor:
    """Return the gradient (N, G, *kernel_size, *out_size) by the kernel."""
    computed = compiled(
        "grad_kernel", grad, input, input.shape[2:], kernel_size, stride, padding, dilation, last, groups
    )
    if computed is not None:
        return computed
    sum_dtype = torch.promote_types(input.dtype, torch.float32)
    grouping = (groups, input.shape[1] // groups)
    padded = _pad(input, padding).unflatten(1, grouping).to(sum_dtype)
    grouped = grad.unflatten(1, grouping).to(sum_dtype)
    made = empty_kernel(grad, groups, kernel_size, last)
    for tap, seen in _windows(kernel_size, grad.shape[2:], stride, dilation):
        made[tap] = (grouped * padded[seen]).sum(2)
    return made


def _register(axes: int) -> None:
    name = f"involution{axes}d"
    geometry = "SymInt[] stride, SymInt[] padding, SymInt[] dilation"
    LIBRARY.define(f"{name}(Tensor input, Tensor kernel, {geometry}) -> Tensor")
    LIBRARY.define(
        f"{name}_grad_input(Tensor grad, Tensor kernel, SymInt[] size, {geometry}, bool channels_last) -> Tensor"
    )
    LIBRARY.define(
        f"{name}_grad_kernel(Tensor grad, Tensor input, SymInt groups, SymInt[] kernel_size, {geometry}, "
        "bool channels_last) -> Tensor"
    )
    # by their names, once they are registered
    operators = torch.ops.tvm_involution
    forward, by_input, by_kernel = (lambda *a, n=name + e: getattr(operators, n)(*a) for e in _OPERATORS)

    def fake(input, kernel, stride, padding, dilation):
        out_size = check_involution(axes, input, kernel, stride, padding, dilation)
        return empty_feature_map(input, out_size, lies_channels_last(input))

    def fake_grad_input(grad, kernel, size, stride, padding, dilation, channels_last):
        return empty_feature_map(grad, size, channels_last)

    def fake_grad_kernel(grad, input, groups, kernel_size, stride, padding, dilation, channels_last):
        return empty_kernel(grad, groups, kernel_size, channels_last)

    # each of the three is linear in both its inputs, so the gradients of each are the two others
    def setup(ctx, inputs, output):
        input, kernel, *ctx.geometry = inputs
        ctx.channels_last = lies_channels_last(input)
        ctx.save_for_backward(input, kernel)

    def backward(ctx, grad):
        input, kernel = ctx.saved_tensors
        groups, *kernel_size = kernel.shape[1 : 2 + axes]
        rest = (*ctx.geometry, ctx.channels_last)
        wanted = ctx.needs_input_grad
        return (
            by_input(grad, kernel, input.shape[2:], *rest) if wanted[0] else None,
            by_kernel(grad, input, groups, kernel_size, *rest) if wanted[1] else None,
            *[None] * 3,
        )

    def setup_grad_input(ctx, inputs, output):
        grad, kernel, _, *ctx.geometry, ctx.channels_last = inputs
        ctx.save_for_backward(grad, kernel)

    def backward_grad_input(ctx, second):
        grad, kernel = ctx.saved_tensors
        groups, *kernel_size = kernel.shape[1 : 2 + axes]
        wanted = ctx.needs_input_grad
        return (
            forward(second, kernel, *ctx.geometry) if wanted[0] else None,
            by_kernel(grad, second, groups, kernel_size, *ctx.geometry, ctx.channels_last) if wanted[1] else None,
            *[None] * 5,
        )

    def setup_grad_kernel(ctx, inputs, output):
        grad, input, _, _, *ctx.geometry, ctx.channels_last = inputs
        ctx.save_for_backward(grad, input)

    def backward_grad_kernel(ctx, second):
        grad, input = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            forward(input, second, *ctx.geometry) if wanted[0] else None,
            by_input(grad, second, input.shape[2:], *ctx.geometry, ctx.channels_last) if wanted[1] else None,
            *[None] * 6,
        )

    for ending, run, made, begin, back in (
        ("", _forward, fake, setup, backward),
        ("_grad_input", _grad_input, fake_grad_input, setup_grad_input, backward_grad_input),
        ("_grad_kernel", _grad_kernel, fake_grad_kernel, setup_grad_kernel, backward_grad_kernel),
    ):
        whole = f"tvm_involution::{name}{ending}"
        for key in ("CPU", "CUDA"):
            torch.library.impl(LIBRARY, name + ending, key)(functools.partial(run, axes))
        torch.library.register_fake(whole, made, lib=LIBRARY)
        torch.library.register_autograd(whole, back, setup_context=begin, lib=LIBRARY)


for _axes in SPACE:
    _register(_axes)
