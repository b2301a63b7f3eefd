# SPDX-License-Identifier: Apache-2.0
"""What TVM's CUDA runtime needs of a machine: NVIDIA's driver, new enough, a GPU, and CUDA's runtime library."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

# of the CUDA that TVM's wheel was built with, as cuDriverGetVersion counts; it came with driver 580
_CUDA, _DRIVER = 13000, 580
_RUNTIME_LIBRARY = "libcudart.so.13"


def cuda_problem() -> str:
    """Return what is missing on this machine and what brings it; nothing where all is there, and then loaded."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine (libcuda.so.1)"
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    if version.value < _CUDA:
        own = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver is too old: it is of CUDA {own}, CUDA 13 needs driver {_DRIVER} or newer"
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return "no NVIDIA GPU on this machine that its driver can use; see `nvidia-smi -L`"
    if not _load_runtime_library():
        return f'{_RUNTIME_LIBRARY} is missing: pip install "nvidia-cuda-runtime>=13,<14"'
    return ""


def _load_runtime_library() -> bool:
    """Load CUDA's runtime library as the system finds it, or from an installed wheel; return whether it is there."""
    wheels = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / "cu13" / "lib" for folder in (wheels.submodule_search_locations or ())] if wheels else []
    for path in (_RUNTIME_LIBRARY, *(str(folder / _RUNTIME_LIBRARY) for folder in folders)):
        try:
            ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
            return True
        except OSError:
            continue
    return False
