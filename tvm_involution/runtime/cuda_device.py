# SPDX-License-Identifier: Apache-2.0
"""A thread's current GPU and its default stream, which are the caller's business where TVM changes or fills them."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from .cuda_driver import runtime_library
from .ffi import tvm_ffi


@contextlib.contextmanager
def current_gpu_kept() -> Iterator[None]:
    """Give the thread the current GPU back that it had before, whatever the block makes current."""
    runtime, before = runtime_library(), ctypes.c_int()
    known = runtime is not None and not runtime.cudaGetDevice(ctypes.byref(before))
    try:
        yield
    finally:
        if runtime is not None and known:
            runtime.cudaSetDevice(before.value)


def synchronize_default_stream(gpu: int) -> None:
    """Block until what was queued on the default stream of GPU number `gpu` is done."""
    tvm_ffi.get_global_func("runtime.Device_StreamSync")(tvm_ffi.device("cuda", gpu), 0)
