# SPDX-License-Identifier: Apache-2.0
"""Calls of compiled kernels with torch tensors."""

from __future__ import annotations

from pathlib import Path

import torch

from ..runtime.arrays import TorchTensors
from ..runtime.ffi import tvm_ffi
from ..runtime.stream_order import order_of
from ..runtime.threads import run_on_pool
from ..runtime.tvm_runtime import load_cuda_runtime, load_runtime
from .aggregation import FUNCTION
from .store import Run


def load_kernel(path: Path, device: torch.device) -> Run:
    """Return what runs the kernel of a shared object, on the CPU in the pool, on a GPU in torch's current stream."""
    load_runtime() if device.type == "cpu" else load_cuda_runtime()
    function = tvm_ffi.load_module(str(path))[FUNCTION]
    kind = TorchTensors(device)

    def on_cpu(*tensors: torch.Tensor) -> None:
        run_on_pool(function, *map(kind.to_tvm, tensors))

    def on_gpu(*tensors: torch.Tensor) -> None:
        order = order_of(device.index or 0)
        with order.turn(), kind.stream(order):
            function(*map(kind.to_tvm, tensors))

    return on_cpu if device.type == "cpu" else on_gpu
