# SPDX-License-Identifier: Apache-2.0
"""TVM's runtime libraries, loaded without the Python package `tvm`, which would bring the 258 MB compiler.

`import tvm` later in the same process finds the same libraries loaded.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
from functools import lru_cache
from pathlib import Path

from ..compute_capability import runs_on
from ..errors import UserError
from .cuda_driver import cuda_problem
from .ffi import tvm_ffi
from .threads import run_between_calls

# DLPack's device type, and kExist and kComputeVersion of TVM's DeviceAttrKind
_CUDA, _EXISTS, _COMPUTE_VERSION = 2, 0, 4


@lru_cache(maxsize=1)
def load_runtime() -> None:
    """Load libtvm_runtime.so, which holds the Relax virtual machine.

    Raises:
        UserError: apache-tvm is not installed.
    """
    ctypes.CDLL(str(_library_dir() / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    extra = _library_dir() / "libtvm_runtime_extra.so"
    if extra.is_file():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)


@lru_cache(maxsize=1)
def load_cuda_runtime() -> None:
    """Load the CUDA part of the runtime.

    Raises:
        CudaMissing: no NVIDIA driver or one that is too old, no GPU, or no CUDA runtime on this machine.
    """
    load_runtime()
    if problem := cuda_problem():
        raise CudaMissing(problem)
    try:
        ctypes.CDLL(str(_library_dir() / "libtvm_runtime_cuda.so"), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise CudaMissing(f"TVM's CUDA runtime cannot be loaded ({error})") from error


class CudaMissing(UserError):
    """There is no CUDA on this machine, and why."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; or compile the network with --target llvm")
        self.problem = problem


def release_memory() -> None:
    """Give back what networks that are gone computed in, which the runtime keeps for the next call of any.

    On a machine with a GPU in use the memory stays: to free it there waits for the GPU and disturbs a capture.
    """
    if not load_cuda_runtime.cache_info().currsize:
        run_between_calls(tvm_ffi.get_global_func("vm.builtin.memory_manager.clear"))


def check_cuda_device(index: int, architecture: str) -> None:
    """Load the CUDA part of the runtime and check that GPU `index` exists and runs code for `architecture`.

    Raises:
        UserError: no driver, no CUDA runtime, no such GPU, or one of another architecture.
    """
    load_cuda_runtime()
    attribute = tvm_ffi.get_global_func("runtime.GetDeviceAttr")
    if not attribute(_CUDA, index, _EXISTS):
        raise UserError(f"no GPU cuda:{index} on this machine; choose one that `nvidia-smi -L` lists")
    version = str(attribute(_CUDA, index, _COMPUTE_VERSION))
    if not runs_on(architecture, version):
        own = f"sm_{version.replace('.', '')}"
        raise UserError(
            f"the library was compiled for {architecture}, cuda:{index} is {own}; compile it again there with --target "
            f"""cuda, or with --target '{{"kind": "cuda", "arch": "{own}"}}'"""
        )


def tvm_version() -> str:
    """Return the version of the installed apache-tvm."""
    return importlib.metadata.version("apache-tvm").split(".post")[0]


def _library_dir() -> Path:
    found = importlib.util.find_spec("tvm")
    if found is None or found.origin is None:
        raise UserError("apache-tvm is not installed; pip install tvm-involution brings it")
    return Path(found.origin).parent / "lib"
