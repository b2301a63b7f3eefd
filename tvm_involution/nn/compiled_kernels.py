# SPDX-License-Identifier: Apache-2.0
"""Involutions by kernels that are compiled for their shapes while the plain form serves."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor

from ..arguments import checked
from ..kernels.store import check_mode, sizes_of, store
from .memory_layout import empty_feature_map, empty_kernel, feature_map_in_memory, kernel_in_memory


class use_kernels:
    """Say whether involutions run by compiled kernels: from now on, or in a `with` block.

    Args:
        mode: `"background"`, the default: a shape that comes for the third time is compiled in another process, and the
            plain form serves until it is. `"wait"`: a shape is compiled when it first comes, so that every run has the
            same kernels from its first step on; so it is, too, under `torch.use_deterministic_algorithms(True)`.
            `"off"`: the plain form.

    The environment's `TVM_INVOLUTION_KERNELS` says what holds at first. Only float32, float16 and bfloat16 on a CPU or
    an NVIDIA GPU have kernels, and only where there is a C compiler; otherwise the plain form serves.

    Raises:
        UserError: another mode.
    """

    @checked
    def __init__(self, mode: str) -> None:
        self._before = store().mode
        store().mode = check_mode(mode)

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        store().mode = self._before


@checked
def wait_for_kernels(timeout: float | None = None) -> bool:
    """Block until the kernels that are being compiled are there, at most `timeout` seconds.

    Returns:
        Whether they are.
    """
    return store().wait(timeout)


def compiled(
    operator: str,
    first: Tensor,
    second: Tensor,
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    channels_last: bool,
    groups: int = 0,
) -> Tensor | None:
    """Return what an operator of `kernels.aggregation.OPERATORS` computes; None where it has no kernel yet.

    Args:
        first, second: what it takes.
        size: of the involution's input along each axis.
        groups: where `second` is no kernel.
    """
    if len(size) == 1:
        second = second.unsqueeze(2) if operator == "grad_kernel" else second.unsqueeze(2).unsqueeze(4)
        whole = ([1, *size], [1, *kernel_size], [1, *stride], [0, *padding], [1, *dilation])
        made = compiled(operator, first.unsqueeze(2), second, *whole, channels_last, groups)
        if made is None:
            return None
        return made.squeeze(4).squeeze(2) if operator == "grad_kernel" else made.squeeze(2)
    groups = groups or second.shape[1]
    geometry = (tuple(stride), tuple(padding), tuple(dilation))
    whole_input = torch.Size((*first.shape[:2], *size))
    sizes = sizes_of(first, whole_input, tuple(kernel_size), groups, geometry, channels_last)
    run = None if sizes is None else store().find(operator, sizes, first.device)
    if run is None or sizes is None:
        return None
    first = feature_map_in_memory(first, channels_last)
    if operator == "grad_kernel":
        made = empty_kernel(first.movedim(-1, 1) if channels_last else first, groups, kernel_size, channels_last)
        run(first, feature_map_in_memory(second, channels_last), kernel_in_memory(made, channels_last))
        return made
    out_size = sizes.out_size if operator == "involution" else sizes.size
    made = empty_feature_map(first.movedim(-1, 1) if channels_last else first, out_size, channels_last)
    run(first, kernel_in_memory(second, channels_last), feature_map_in_memory(made, channels_last))
    return made
