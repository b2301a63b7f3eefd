# SPDX-License-Identifier: Apache-2.0
"""Find out what a region computes by evaluating it.

A region is linear in x and linear in the kernel: f(x, k)[e] is a sum of c * x[i] * k[j]. Numbers that say where an
element lies come out of it as the places that it has read: with ones for the kernel and the channel's number in x,
every element of the result is (T times) its own channel, and with the row's number the mean of the rows in its window.
The gradient by the kernel of the sum of all results says likewise which place each of the kernel's elements is
multiplied with. A few evaluations and gradients so tell where everything lies, if the region is an involution; whether
it is one is decided afterwards, on random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Bilinear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_TOLERANCE = 1e-6


class NotAnInvolution(Exception):
    """What was evaluated is no involution; the message says why."""


@dataclass(frozen=True)
class Wiring:
    """Which element of each tensor an involution of any number of spatial axes reads and writes.

    Attributes:
        kernel_size, stride, dilation: a number for each spatial axis.
        start: where in x the first window begins, along each spatial axis.
        out_size: windows along each spatial axis.
        scale: what all products are multiplied with.
        channels: (G, C/G), the channel of x that each channel of each group is.
        kernel: (N, G, *kernel_size, *out_size), places in the flat kernel.
        result: (N, G, C/G, *out_size), places in the flat result.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    start: tuple[int, ...]
    out_size: tuple[int, ...]
    scale: float
    channels: np.ndarray
    kernel: np.ndarray
    result: np.ndarray


def probe(region: Bilinear, x_shape: Sequence[int], kernel_shape: Sequence[int]) -> Wiring:
    """Return how `region` is wired if it is an involution of x (N, C, *spatial), all of whose windows lie inside.

    Raises:
        NotAnInvolution: it is none, seen on the way.
    """
    batch, channels, *spatial = x_shape
    places = np.indices(x_shape)
    ones = torch.ones(*kernel_shape, dtype=torch.float64)

    # each result: how much, which picture and channel, the middle of which window
    kernel = ones.clone().requires_grad_()
    total = region(torch.ones(*x_shape, dtype=torch.float64), kernel)
    amount = float(total.detach().flatten()[0])
    _check(amount != 0 and _same(total.detach().numpy(), amount), "windows differ in how much they sum")
    code = _encode(
        [places[0], places[1], *(2 * axis for axis in places[2:])], [batch, channels, *(2 * s for s in spatial)]
    )
    with torch.no_grad():
        middles = region(torch.from_numpy(code), ones).numpy().ravel() / amount
    picture, channel, *middle = _decode(_whole(middles), [batch, channels, *(2 * size for size in spatial)])
    steps = [np.unique(values, return_inverse=True) for values in middle]
    out_size = tuple(len(values) for values, _ in steps)
    _check(batch * channels * math.prod(out_size) == middles.size, "results are not windows times channels")
    out = [position for _, position in steps]
    result = _invert([picture, channel, *out], (batch, channels, *out_size))
    stride = tuple(_step(values, 2) for values, _ in steps)

    # each element of the kernel: which picture and window it belongs to, which place it is multiplied with
    (uses,) = torch.autograd.grad(total.sum(), kernel, retain_graph=True)
    uses = uses.flatten()
    _check(bool((uses != 0).all()), "the kernel has elements that nothing is multiplied with")
    window = _encode([picture, *out], [batch, *out_size])
    (windows,) = torch.autograd.grad((total * _like(window, total)).sum(), kernel, retain_graph=True)
    sign = np.random.default_rng(0).uniform(1, 2, channels)  # tells sets of channels apart by their sum
    (marks,) = torch.autograd.grad((total * _like(sign[channel], total)).sum(), kernel)
    kernel_picture, *kernel_out = _decode(_whole((windows.flatten() / uses).numpy()), [batch, *out_size])
    place = torch.from_numpy(_encode(list(places[2:]), spatial))
    kernel = ones.clone().requires_grad_()
    (reads,) = torch.autograd.grad(region(place, kernel).sum(), kernel)
    read = _decode(_whole((reads.flatten() / uses).numpy()), spatial)

    # taps
    start, dilation, taps, kernel_size = [], [], [], []
    for axis in range(len(spatial)):
        offset = read[axis] - kernel_out[axis] * stride[axis]
        offsets, tap = np.unique(offset, return_inverse=True)
        start.append(int(offsets[0]))
        dilation.append(_step(offsets, 1))
        taps.append(tap)
        kernel_size.append(len(offsets))
    _check(math.prod(kernel_size) > 1, "windows are single pixels")

    # groups: who shares elements of the kernel, in the order of their first channels
    _, group = np.unique(np.round((marks.flatten() / uses).numpy(), 9), return_inverse=True)
    groups = int(group.max()) + 1
    _check(channels % groups == 0 and group.size == batch * groups * math.prod((*kernel_size, *out_size)), "no groups")
    with torch.no_grad():
        number = region(torch.ones(*x_shape, dtype=torch.float64), torch.from_numpy(group + 0.0).view(*kernel_shape))
    of_channel = np.full(channels, -1)
    of_channel[channel] = _whole(number.numpy().ravel() / amount)
    _, first = np.unique(of_channel, return_index=True)
    _check(len(first) == groups, "a channel has kernels of several groups")
    rank = np.argsort(np.argsort(first))
    members = np.argsort(rank[of_channel], kind="stable").reshape(groups, channels // groups)
    layout = (batch, groups, *kernel_size, *out_size)
    return Wiring(
        kernel_size=tuple(kernel_size),
        stride=stride,
        dilation=tuple(dilation),
        start=tuple(start),
        out_size=out_size,
        scale=amount / math.prod(kernel_size),
        channels=members,
        kernel=_invert([kernel_picture, rank[group], *taps, *kernel_out], layout),
        result=result.reshape(batch, channels, *out_size)[:, members],
    )


def equal(region: Bilinear, other: Bilinear, x_shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
    """Return whether two functions give the same results on two draws of random numbers."""
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        x, kernel = (torch.randn(*shape, dtype=torch.float64, generator=random) for shape in (x_shape, kernel_shape))
        expected, actual = region(x, kernel), other(x, kernel)
        if expected.shape != actual.shape or not bool((expected - actual).abs().max() <= 1e-9 * expected.abs().max()):
            return False
    return True


def _encode(numbers: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return one number for several, each below its size."""
    return np.ravel_multi_index(list(numbers), tuple(sizes)).astype(np.float64)


def _decode(code: np.ndarray, sizes: Sequence[int]) -> Sequence[np.ndarray]:
    _check(bool(code.size and code.min() >= 0 and code.max() < math.prod(sizes)), "it reads what is not there")
    return np.unravel_index(code, tuple(sizes))


def _whole(values: np.ndarray) -> np.ndarray:
    whole = np.round(values)
    _check(bool(np.abs(values - whole).max() < _TOLERANCE), "elements of several places are mixed")
    return whole.astype(np.int64)


def _step(values: np.ndarray, unit: int) -> int:
    """Return the difference between neighbours, in `unit`s; 1 where there is one value alone."""
    if len(values) == 1:
        return 1
    steps = np.diff(values)
    _check(bool((steps == steps[0]).all()) and steps[0] % unit == 0, "windows are not evenly spaced")
    return int(steps[0]) // unit


def _invert(indices: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return, for each index, the place where it stands; each stands once."""
    flat = np.ravel_multi_index(list(indices), shape)
    inverse = np.full(math.prod(shape), -1)
    _check(flat.size == inverse.size, "not every place is there once")
    inverse[flat] = np.arange(flat.size)
    _check(bool((inverse >= 0).all()), "not every place is there once")
    return inverse.reshape(shape)


def _same(values: np.ndarray, value: float) -> bool:
    return bool(np.abs(values - value).max() <= _TOLERANCE * abs(value))


def _like(values: np.ndarray, tensor: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(values).view(tensor.shape)


def _check(holds: bool, reason: str) -> None:
    if not holds:
        raise NotAnInvolution(reason)
