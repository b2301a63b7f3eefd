# SPDX-License-Identifier: Apache-2.0
"""Whether an involution that generates its kernel beats a span convolution and an involution that reads it."""

from __future__ import annotations

import functools
import math

import tvm

from ...te.mma_convolution import MmaFragments
from ..window import Window
from .box import copied_kernel, estimated_cycles
from .tensor_core_involution import multiplied_on_tensor_cores

# of the GPUs that defaults are chosen for: 3.03 TB/s of a copy at 1.7 GHz; a kernel more in a graph, assumed to take a
# microsecond at least
_MEMORY_BYTES_A_CYCLE, _KERNEL_CYCLES = 1780, 1700


# hidden channels up to which the kernel is generated on CUDA cores where it is used
_HIDDEN, _HIDDEN_BESIDE_TENSOR_CORES = 64, 8


def fusing_pays_on_cuda_cores(hidden: int, span_on_tensor_cores: bool) -> bool:
    """Return whether the products take less time than the kernel's way through memory (docs/gpu.md).

    Args:
        hidden: channels that the kernel is generated from.
        span_on_tensor_cores: whether the span alone would run there, as in the half types and in tf32.
    """
    return hidden <= (_HIDDEN_BESIDE_TENSOR_CORES if span_on_tensor_cores else _HIDDEN)


def fusing_pays(window: Window, hidden: int, fragments: MmaFragments, target: tvm.target.Target) -> bool:
    """Return whether the kernel should be generated where it is used, on tensor cores.

    That saves the kernel's way to memory and back, and takes the cycles by which the box estimate is longer. The span's
    products are not compared: on tensor cores they take a small part of the time that its result takes to memory.

    Args:
        hidden: channels that the kernel is generated from.
    """
    pixels = window.batch * window.out_rows * window.out_columns
    kernel_bytes = pixels * window.groups * window.taps * window.element_bytes
    saved = max(2 * kernel_bytes / _MEMORY_BYTES_A_CYCLE, _KERNEL_CYCLES)
    given = estimated_cycles(window, target, copied_kernel)
    return _generated_cycles(window, hidden, fragments, target) < given + saved


def fusing_works(window: Window, hidden: int, fragments: MmaFragments, target: tvm.target.Target) -> bool:
    """Return whether `TensorCoreInvolution` can generate the kernel where it is used; arguments as of `fusing_pays`."""
    return math.isfinite(_generated_cycles(window, hidden, fragments, target))


def _generated_cycles(window: Window, hidden: int, fragments: MmaFragments, target: tvm.target.Target) -> float:
    chunks = -(-hidden // fragments.chunk)
    generated = functools.partial(multiplied_on_tensor_cores, fragments=fragments, chunks=chunks)
    return estimated_cycles(window, target, generated)
