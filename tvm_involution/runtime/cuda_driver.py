# SPDX-License-Identifier: Apache-2.0
"""What TVM's CUDA runtime needs of a machine: NVIDIA's driver, new enough, a GPU, and CUDA's runtime library."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

# of the CUDA that TVM's wheel was built with, as cuDriverGetVersion counts; it came with driver 580
_CUDA, _DRIVER = 13000, 580
_RUNTIME_LIBRARY = "libcudart.so.13"
_NO_DEVICE = 100


# what to do about an error of the driver, by its number (CUresult)
_REMEDIES = {
    3: "a process that was forked from one that uses CUDA cannot use it; start it by spawn",
    34: "it is the toolkit's stub, which programs are only linked with; take its folder out of LD_LIBRARY_PATH",
    _NO_DEVICE: "there is no GPU, or none that is visible; see `nvidia-smi -L` and CUDA_VISIBLE_DEVICES",
    101: "CUDA_VISIBLE_DEVICES names a GPU that is not there; see `nvidia-smi -L`",
    304: "the operating system refuses; see whether this user may open /dev/nvidia*",
    802: "a daemon of the driver's does not run yet; on machines with NVSwitch start nvidia-fabricmanager",
    803: "its library and its kernel module are of different versions; restart the machine, or the container",
    804: "CUDA's compatibility libraries do not take this GPU; take their folder out of LD_LIBRARY_PATH",
}
_ANY_REMEDY = "see whether `nvidia-smi` runs, and what the kernel's log says of it"


def cuda_problem() -> str:
    """Return what is missing on this machine and what brings it; nothing where all is there, and then loaded."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if "No such file" not in str(error):
            return f"the NVIDIA driver cannot be loaded ({error}); install driver {_DRIVER} or newer again"
        return (
            f"no NVIDIA driver on this machine (libcuda.so.1); install driver {_DRIVER} or newer, or start the "
            "container with the host's GPUs"
        )
    if problem := _driver_problem(driver):
        return problem
    if runtime_library() is None:
        return f'{_RUNTIME_LIBRARY} is missing: pip install "nvidia-cuda-runtime>=13,<14"'
    return ""


def _driver_problem(driver: ctypes.CDLL) -> str:
    """Return why the driver does not reach a GPU, or is not new enough; nothing where it will do."""
    version, count = ctypes.c_int(), ctypes.c_int()
    if problem := _failure(driver, "cuDriverGetVersion", ctypes.byref(version)):
        return problem
    if version.value < _CUDA:
        own = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return f"the NVIDIA driver is too old: it is of CUDA {own}, CUDA 13 needs driver {_DRIVER} or newer"
    failure = _failure(driver, "cuInit", 0) or _failure(driver, "cuDeviceGetCount", ctypes.byref(count))
    if failure or count.value:
        return failure
    return f"no NVIDIA GPU that the driver can use: {_REMEDIES[_NO_DEVICE]}"


def _failure(driver: ctypes.CDLL, function: str, argument: Any) -> str:
    """Call a function of the driver; return what its error is called and what to do, nothing where there is none."""
    try:
        code = driver[function](argument)
    except AttributeError:
        return f"the NVIDIA driver has no {function} (libcuda.so.1); install driver {_DRIVER} or newer"
    if not code:
        return ""
    name = ctypes.c_char_p()
    with contextlib.suppress(AttributeError):
        driver["cuGetErrorName"](code, ctypes.byref(name))
    error = f"{name.value.decode()} ({code})" if name.value else f"error {code}"
    what = "no NVIDIA GPU that the driver can use" if code == _NO_DEVICE else "the NVIDIA driver does not work"
    return f"{what}, {function}: {error}; {_REMEDIES.get(code, _ANY_REMEDY)}"


@lru_cache(maxsize=1)
def runtime_library() -> ctypes.CDLL | None:
    """Load CUDA's runtime library as the system finds it, or from an installed wheel; None where there is none."""
    wheels = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / "cu13" / "lib" for folder in (wheels.submodule_search_locations or ())] if wheels else []
    for path in (_RUNTIME_LIBRARY, *(str(folder / _RUNTIME_LIBRARY) for folder in folders)):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    return None
