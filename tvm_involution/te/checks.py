# SPDX-License-Identifier: Apache-2.0
"""The argument checks of every expression in this folder."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import numpy as np
import tvm
from tvm import te, tirx

from ..errors import UserError

Pair = int | Sequence[int]
PerAxis = int | Sequence[int]
LAYOUTS = ("NCW", "NWC", "NCHW", "NHWC", "NCDHW", "NDHWC")
DTYPES = ("float64", "float32", "float16", "bfloat16")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


def as_pair(name: str, value: Pair, minimum: int) -> tuple[int, int]:
    """Return an int or a pair (rows, columns) as a pair.

    Raises:
        UserError: not one or two whole numbers, or below `minimum`.
    """
    first, second = per_axis(name, value, minimum, 2)
    return first, second


def per_axis(name: str, value: PerAxis, minimum: int, axes: int) -> tuple[int, ...]:
    """Return an int, or one for each of so many axes, as one for each.

    Raises:
        UserError: not one whole number or one for each axis, or below `minimum`.
    """
    try:
        values = value if isinstance(value, Sequence) else (value,) * axes
        numbers = tuple(int(v) if isinstance(v, tirx.IntImm) else index(v) for v in values)
    except TypeError:
        numbers = ()
    if len(numbers) != axes or min(numbers) < minimum:
        several = {1: "one for the only axis", 2: "a pair"}.get(axes, f"{axes} of them")
        raise UserError(f"{name} must be an int or {several} of at least {minimum}, got {value!r}")
    return numbers


def one_each(name: str, values: Sequence[int], count: int, minimum: int) -> tuple[int, ...]:
    """Return `values`, of which there must be `count`.

    Raises:
        UserError: another number of them, or below `minimum`.
    """
    if len(values) != count or min(values) < minimum:
        raise UserError(
            f"{name} must be {count} whole numbers of at least {minimum} for x of this rank, got {tuple(values)}"
        )
    return tuple(values)


def space_of(layout: str) -> str:
    """Return the spatial axes of a layout: `DHW` of `NCDHW` and of `NDHWC`."""
    return layout.replace("N", "").replace("C", "")


def check_layout(layout: str, axes: int | None = None) -> None:
    """Raise `UserError` where `layout` is none of `LAYOUTS`, or of those with so many spatial axes."""
    layouts = [known for known in LAYOUTS if axes is None or len(space_of(known)) == axes]
    if layout not in layouts:
        raise UserError(f"layout must be one of {', '.join(layouts)}, got {layout!r}")


def check_rank(name: str, tensor: te.Tensor, *ranks: int) -> None:
    """Raise `UserError` where `tensor` has none of `ranks`."""
    if len(tensor.shape) not in ranks:
        wanted = " or ".join(str(rank) for rank in ranks)
        raise UserError(f"{name} must have rank {wanted}, got shape {shape_text(tensor)}")


def check_array(name: str, array: np.ndarray, *ranks: int) -> None:
    """Raise `UserError` where `array` holds no real numbers, is empty, or has none of `ranks`, if any are given."""
    if str(array.dtype) not in (*DTYPES, *_INTEGERS) or not array.size or array.ndim not in (ranks or (array.ndim,)):
        rank = f" of rank {' or '.join(map(str, ranks))}" if ranks else ""
        raise UserError(
            f"{name} must be an array{rank} of real numbers, got {array.dtype} of shape {list(array.shape)}"
        )


def check_span(weight: np.ndarray, bias: np.ndarray, taps: int) -> None:
    """Raise `UserError` where these are no span convolution: (G * taps, R, 1, 1) and (G * taps,)."""
    check_array("weight", weight, 4)
    check_array("bias", bias, 1)
    if weight.shape[0] % taps or weight.shape[2:] != (1, 1) or bias.shape != weight.shape[:1]:
        raise UserError(
            f"weight must be (G*{taps}, R, 1, 1) and bias (G*{taps},) for {taps} taps of kernel_size, got "
            f"{list(weight.shape)} and {list(bias.shape)}"
        )


def check_shape(name: str, tensor: te.Tensor, expected: Sequence[Any]) -> None:
    """Raise `UserError` where `tensor` has not the shape `expected`, of ints or TVM expressions."""
    analyzer = tvm.sym.Analyzer()
    if len(tensor.shape) != len(expected) or not all(map(analyzer.can_prove_equal, tensor.shape, expected)):
        raise UserError(f"{name} must have shape [{', '.join(map(str, expected))}], got {shape_text(tensor)}")


def check_groups(name: str, tensor: te.Tensor, channels: Any, groups: int) -> None:
    """Raise `UserError` where the `channels` of `tensor` are no multiple of `groups`."""
    if groups < 1 or int(channels) % groups:
        raise UserError(f"the channels of {name} must be a multiple of {groups} groups, got {shape_text(tensor)}")


def check_window_fits(x: te.Tensor, window: Sequence[int], out_size: Sequence[Any]) -> None:
    """Raise `UserError` where the output surely has nothing along an axis."""
    analyzer = tvm.sym.Analyzer()
    if any(analyzer.can_prove(size < 1) for size in out_size):
        raise UserError(
            f"a window of {'x'.join(map(str, window))} pixels (dilation included) is larger than the padded x "
            f"{shape_text(x)}; expected a smaller kernel_size or dilation, or more padding"
        )


def check_same_dtype(**tensors: te.Tensor) -> None:
    """Raise `UserError` where the tensors' dtypes differ or are none of `DTYPES`."""
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        got = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise UserError(f"all inputs must have one dtype of {', '.join(DTYPES)}, got {got}")


def check_dtype(name: str, dtype: str) -> None:
    """Raise `UserError` where `dtype` names no type of real numbers."""
    if str(dtype) not in (*DTYPES, *_INTEGERS):
        raise UserError(f"{name} must be one of {', '.join((*DTYPES, *_INTEGERS))}, got {dtype!r}")


def check_single(**tensors: te.Tensor) -> None:
    """Raise `UserError` where a tensor's numbers are none that float32 can hold."""
    for name, tensor in tensors.items():
        if str(tensor.dtype) not in DTYPES[1:]:
            raise UserError(f"{name} must be of dtype {' or '.join(DTYPES[1:])}, got {tensor.dtype}")


def check_out_channels(out_channels: int, packed: int) -> None:
    """Raise `UserError` where a packed weight has fewer output channels than are wanted."""
    if not 1 <= out_channels <= packed:
        raise UserError(f"out_channels must be from 1 to the {packed} of the packed weight, got {out_channels}")


def shape_text(tensor: te.Tensor) -> str:
    """Return the shape of `tensor` for a message, as `[1, 64, 56, 56]`."""
    return f"[{', '.join(str(d) for d in tensor.shape)}]"
