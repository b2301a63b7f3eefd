# SPDX-License-Identifier: Apache-2.0
"""From CUDA C to machine code for one architecture; needs a compiler, nvcc or NVRTC, but no GPU.

On a machine without a GPU TVM 0.27 puts CUDA C itself into a library, and calls Python where that is loaded to have it
compiled. Compiled here, by the same function and flags wherever TVM asks for it.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tvm_ffi
from tvm.support import nvcc as tvm_nvcc
from tvm.target import Target

from ..errors import UserError


def find_nvcc() -> str | None:
    """Return nvcc: the one on PATH, else that of the package nvidia-cuda-nvcc; None where there is none."""
    if found := shutil.which("nvcc"):
        return found
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else None
    return next((str(path) for folder in folders or () for path in Path(folder).glob("cu*/bin/nvcc")), None)


def check_cuda_compiler(architecture: str) -> None:
    """Check that CUDA C can be compiled for `architecture`, such as `sm_90a`.

    Raises:
        UserError: no compiler here, or it does not know the architecture.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        if _has_nvrtc():
            return  # it has no list of architectures; what it says goes on as it is
        raise UserError(
            "no compiler for CUDA here; put nvcc on PATH, or `pip install nvidia-cuda-nvcc nvidia-cuda-runtime "
            "nvidia-cuda-cccl`"
        )
    known = _architectures(nvcc)
    number = re.sub(r"\D", "", architecture)
    if f"sm_{number}" not in known:
        raise UserError(
            f"{nvcc} cannot compile for {architecture}; it knows {', '.join(known)}: name one of them, or use another "
            "version of CUDA"
        )


@dataclass(frozen=True)
class CudaCode:
    """A source as nvcc compiled it."""

    cubin: bytes
    ptx: str
    reports: dict[str, str]
    """what ptxas says about each kernel: registers, shared memory, spills"""


def compile_cuda(source: str, architecture: str) -> bytes:
    """Return CUDA C compiled for `architecture` (a cubin).

    Raises:
        RuntimeError: the compiler's message.
    """
    if find_nvcc() is None:
        return bytes(tvm_nvcc.compile_cuda(source, "cubin", architecture, compiler="nvrtc"))
    return compile_by_nvcc(source, architecture).cubin


def compile_by_nvcc(source: str, architecture: str) -> CudaCode:
    """Compile CUDA C for `architecture` by nvcc.

    ptxas saves registers for the sake of more blocks on a multiprocessor, now and then at the price of a spill. A
    kernel to which that happens is content with one block and compiled again.

    Raises:
        RuntimeError: nvcc's message, or there is no nvcc.
    """
    code = _run_nvcc(source, architecture)
    spilled = [name for name, report in code.reports.items() if re.search(r"[1-9]\d* bytes spill", report)]
    if not spilled:
        return code
    bound = rf"__launch_bounds__\((\d+)\)(?= (?:{'|'.join(spilled)})\()"
    return _run_nvcc(re.sub(bound, r"__launch_bounds__(\1, 1)", source), architecture)


def sections(text: str, heading: str) -> dict[str, str]:
    """Return what follows each heading, by the group of the pattern `heading`."""
    _, *parts = re.split(heading, text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def _run_nvcc(source: str, architecture: str) -> CudaCode:
    """Compile as it is; divisions, roots and exponentials stay exact, unlike with the `--use_fast_math` of TVM."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("there is no nvcc on PATH")
    with tempfile.TemporaryDirectory() as folder:
        path, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        path.write_text(source)
        command = [nvcc, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "--keep", "--keep-dir", folder]
        # TVM's own functions that no kernel calls, types that CUDA 13 renames, decimal fractions
        command += ["-diag-suppress=177,1444,1046", "-o", str(binary), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = (done.stdout + done.stderr).splitlines()
            errors = [line for line in lines if re.search(r"\b(error|fatal)\b", line)] or lines
            raise RuntimeError("\n".join([f"nvcc failed for {architecture}:", *errors[:20]]))
        reports = sections(done.stdout + done.stderr, r"Compiling entry function '(\w+)'")
        return CudaCode(binary.read_bytes(), Path(folder, "kernels.ptx").read_text(), reports)


@functools.cache
def _architectures(nvcc: str) -> tuple[str, ...]:
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    return tuple(listed.stdout.split())


def _has_nvrtc() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings.nvrtc") is not None
    except ModuleNotFoundError:
        return False


@tvm_ffi.register_global_func("tvm_callback_cuda_compile", override=True)
def _compile_for_current_target(source: str) -> bytes:
    """Compile for TVM, which calls this where a GPU is: for the target around the call, else for that GPU."""
    version = tvm_nvcc.get_target_compute_version(Target.current(allow_none=True))
    return compile_cuda(source, f"sm_{version.replace('.', '')}")
