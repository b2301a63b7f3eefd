# SPDX-License-Identifier: Apache-2.0
"""What stands in a recognised region's place: an involution between views that order elements for it and back."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from ...nn.ops import SPACE
from .probing import NotAnInvolution, Wiring

_ATEN = torch.ops.aten
# operators of involution, by their number of spatial axes
OPERATORS = {axes: getattr(torch.ops.tvm_involution, f"involution{axes}d").default for axes in SPACE}


class Writer(Protocol):
    """Computes at once, or writes a graph that will."""

    def __call__(self, operator: Any, *arguments: Any) -> Any:
        """Return what `operator` makes."""

    def reshape(self, tensor: Any, shape: Sequence[int]) -> Any:
        """Return `tensor` in another shape, itself where it has that shape."""

    def constant(self, values: np.ndarray) -> Any:
        """Return a tensor of whole numbers."""


class Replacement:
    """An involution wired as `wiring` says.

    Attributes:
        rows: where the kernel is (N, G * taps, *out_size) with its channels in any order: the channel at each place of
            the operator's order (group, tap). A convolution that makes the kernel can make them so. Else None.
        scale: what all products are multiplied with.
    """

    def __init__(
        self,
        wiring: Wiring,
        x_shape: Sequence[int],
        result_shape: Sequence[int],
        padding: Sequence[tuple[int, int]],
    ) -> None:
        """Work out the geometry and the order of all axes.

        Args:
            x_shape: (N, C, *spatial), without the padding.
            result_shape: as it is to come out.
            padding: zeros before and behind x along each spatial axis that `wiring` takes for a part of x.

        Raises:
            NotAnInvolution: elements lie in no order that views and permutations of channels make.
        """
        self.scale = wiring.scale
        self.wiring, self._batch = wiring, x_shape[0]
        self._result_shape = list(result_shape)
        self._kernel_shape = [self._batch, *wiring.kernel.shape[1:]]
        self._padded = [before for before, _ in padding]
        self._place_windows(x_shape[2:])
        self._order_channels()
        self._order_kernel()

    def enlarged(self, x_shape: Sequence[int], result_shape: Sequence[int], more: Sequence[int]) -> Replacement:
        """Return the same for a tensor that has more pixels along each spatial axis, and perhaps more pictures.

        Raises:
            NotAnInvolution: its windows are not as many as the results.
        """
        wiring = self.wiring
        steps = list(zip(wiring.out_size, more, wiring.stride, strict=True))
        out_size = tuple(size + pixels // stride for size, pixels, stride in steps)
        whole = all(pixels % stride == 0 for _, pixels, stride in steps)
        if not whole or math.prod((*x_shape[:2], *out_size)) != math.prod(result_shape):
            raise NotAnInvolution("it has other windows in a larger picture")
        other = copy.copy(self)
        other.wiring, other._batch = dataclasses.replace(wiring, out_size=out_size), x_shape[0]
        other._result_shape = list(result_shape)
        other._kernel_shape = [x_shape[0], len(wiring.channels), *wiring.kernel_size, *out_size]
        other._place_windows(x_shape[2:])
        return other

    def __call__(self, write: Writer, x: Any, kernel: Any, made_to_order: bool = False) -> Any:
        """Write the involution of `x` and `kernel`.

        Args:
            made_to_order: whether the kernel's channels come in the order of the operator, and scaled.
        """
        wiring = self.wiring
        x = self._ordered_x(write, x)
        kernel = write.reshape(kernel, self._kernel_shape) if made_to_order else self._ordered_kernel(write, kernel)
        out = write(
            OPERATORS[len(wiring.out_size)], x, kernel, *map(list, (wiring.stride, self._padding, wiring.dilation))
        )
        if self.scale != 1 and not made_to_order:
            out = write(_ATEN.mul.Tensor, out, self.scale)
        if self._channels_back is not None:
            out = write(_ATEN.index_select.default, out, 1, write.constant(self._channels_back))
        groups, members = wiring.channels.shape
        split = [self._batch, groups, members, *wiring.out_size]
        if self._result_order != tuple(range(len(split))):
            out = write(_ATEN.permute.default, write.reshape(out, split), list(self._result_order))
        return write.reshape(out, self._result_shape)

    def _ordered_kernel(self, write: Writer, kernel: Any) -> Any:
        """Write the kernel (N, G, *kernel_size, *out_size)."""
        wiring = self.wiring
        if self._kernel_order is not None:
            return _read(write, kernel, self._kernel_shape, self._kernel_order)
        packed = [self._batch, wiring.channels.shape[0] * math.prod(wiring.kernel_size), *wiring.out_size]
        assert self._packed_order is not None
        kernel = _read(write, kernel, packed, self._packed_order)
        kernel = write(_ATEN.index_select.default, kernel, 1, write.constant(self._kernel_channels))
        return write.reshape(kernel, self._kernel_shape)

    def _place_windows(self, sizes: Sequence[int]) -> None:
        wiring, padded = self.wiring, self._padded
        before, behind, fits = [], [], []
        for axis, size in enumerate(sizes):
            stride, count = wiring.stride[axis], wiring.out_size[axis]
            window = wiring.dilation[axis] * (wiring.kernel_size[axis] - 1) + 1
            first = padded[axis] - wiring.start[axis]
            before.append(first)
            behind.append((count - 1) * stride + window - size - first)
            fits.append(first >= 0 and (size + 2 * first - window) // stride + 1 == count)
        # the operator pads by as much on both sides; what is not so is padded, or cut, by itself
        self._padding = before if all(fits) else [0] * len(before)
        self._padded_sizes = (
            list(sizes) if all(fits) else [b + s + e for b, s, e in zip(before, sizes, behind, strict=True)]
        )
        self._pad_widths = (
            [] if all(fits) else [w for pair in zip(before[::-1], behind[::-1], strict=True) for w in pair]
        )

    def _order_channels(self) -> None:
        wiring = self.wiring
        channels = wiring.channels
        self._channels_order = _order(channels)
        self._channels: np.ndarray | None = None
        self._channels_back: np.ndarray | None = None
        result = wiring.result
        if self._channels_order is None:
            self._channels = channels.ravel()
            self._channels_back = np.argsort(self._channels)
            joined = result.reshape(result.shape[0], channels.size, *wiring.out_size)
            result = joined[:, self._channels_back].reshape(result.shape)
        order = _order(result)
        if order is None:
            raise NotAnInvolution("its result has an unknown order of elements")
        self._result_order = order

    def _ordered_x(self, write: Writer, x: Any) -> Any:
        if self._pad_widths:
            x = write(_ATEN.constant_pad_nd.default, x, self._pad_widths)
        if self._channels is not None:
            return write(_ATEN.index_select.default, x, 1, write.constant(self._channels))
        if self._channels_order == (1, 0):
            groups, members = self.wiring.channels.shape
            sizes = self._padded_sizes
            split = write.reshape(x, [self._batch, members, groups, *sizes])
            spatial = range(3, 3 + len(sizes))
            return write.reshape(
                write(_ATEN.permute.default, split, [0, 2, 1, *spatial]), [self._batch, groups * members, *sizes]
            )
        return x

    def _order_kernel(self) -> None:
        wiring = self.wiring
        batch, groups = wiring.kernel.shape[:2]
        packed = wiring.kernel.reshape(batch, groups * math.prod(wiring.kernel_size), *wiring.out_size)
        natural = np.arange(packed.size).reshape(packed.shape)
        first = packed[0].reshape(packed.shape[1], -1)[:, 0]
        rows = first // math.prod(wiring.out_size)
        inside = rows.max() < packed.shape[1]
        self.rows = rows if inside and np.array_equal(natural[:, rows], packed) else None
        self._kernel_order = _order(wiring.kernel)
        by_place = np.argsort(first)
        self._packed_order = _order(packed[:, by_place])
        self._kernel_channels = np.argsort(by_place)
        if self._kernel_order is None and self._packed_order is None:
            raise NotAnInvolution("its kernel has an unknown order of elements")


def _order(places: np.ndarray) -> tuple[int, ...] | None:
    """Return the order of axes in which `places` count from 0; None where there is none."""
    steps = []
    for axis, size in enumerate(places.shape):
        at = (0,) * axis + (min(1, size - 1),) + (0,) * (places.ndim - axis - 1)
        steps.append(int(places[at] - places.flat[0]) if size > 1 else 0)
    # axes of one element stay where they are, in front of what follows them
    order = list(range(places.ndim))
    for axis in reversed(range(places.ndim)):
        if places.shape[axis] == 1:
            steps[axis] = steps[axis + 1] * places.shape[axis + 1] if axis + 1 < places.ndim else 1
    order.sort(key=lambda axis: -steps[axis])
    counted = np.array_equal(places.transpose(order).ravel(), np.arange(places.size))
    return tuple(order) if counted else None


def _read(write: Writer, tensor: Any, shape: Sequence[int], order: Sequence[int]) -> Any:
    """Write `tensor`, whose axes lie in `order`, as one of `shape`."""
    if list(order) == list(range(len(shape))):
        return write.reshape(tensor, shape)
    viewed = write.reshape(tensor, [shape[axis] for axis in order])
    back = [list(order).index(axis) for axis in range(len(shape))]
    return write(_ATEN.permute.default, viewed, back)
