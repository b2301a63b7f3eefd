# SPDX-License-Identifier: Apache-2.0
"""The machine, and its roofs: the rate of a large copy, and of a large matrix product in each precision."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess

import torch

from tvm_involution.bench.machine import describe_machine
from tvm_involution.lowering.cuda_code import find_nvcc
from tvm_involution.runtime.threads import thread_count

from ..peers import allow_tf32
from ..results import FAILED, Results, rounded
from ..settings import PRECISIONS, Settings, dtype_of
from ..timing import time_launches
from ..workers import Worker

_PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "triton", "numpy", "cupy-cuda13x", "cupy-cuda12x", "xgboost-cpu")
# side of the matrices, bytes of the copy
_SIZES = {"cuda": (8192, 4 << 30), "cpu": (256, 16 << 20)}


def machine(settings: Settings, results: Results) -> None:
    """Describe the machine and measure its roofs.

    Raises:
        RuntimeError: the results are of another GPU.
    """
    found = describe(settings.on_gpu)
    before = results.row("machine", roof="none")
    if before is not None and before["device"] != found["device"]:
        raise RuntimeError(f"{settings.out} has results of {before['device']}, this is {found['device']}: name another")
    results.put("machine", {"roof": "none"}, **found)
    with Worker(settings) as worker:
        for roof in ("copy", *PRECISIONS):
            if results.row("machine", roof=roof) is None:
                outcome = worker.do(measure, roof, settings.device, seconds=60)
                results.put("machine", {"roof": roof}, **(outcome.value or {FAILED: outcome.failure}))


def describe(on_gpu: bool) -> dict[str, object]:
    """Return what figures were measured on and with."""
    found: dict[str, object] = {**describe_machine(thread_count())}
    found["device"] = found["cpu"]
    if on_gpu:
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_gib"] = round(properties.total_memory / 2**30, 1)
        found["cache_mib"] = round(properties.L2_cache_size / 2**20, 1)
        found["driver"] = _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])
        found["cuda"] = torch.version.cuda
        found["cuda compiler"] = find_nvcc() or "nvrtc"
    found["nvcc"] = _first_line(["nvcc", "--version"], "release")
    found["kernel"] = platform.release()
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def measure(roof: str, device: str) -> dict[str, object]:
    """Measure one roof: `copy`, or a precision's matrix product."""
    side, copied = _SIZES[device]
    if roof == "copy":
        source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=device)
        destination = torch.empty_like(source)
        timing = time_launches([lambda: destination.copy_(source)], device)
        return {"gbs": rounded(2 * copied / timing.min_us / 1e3), "bytes": copied, **timing.fields()}
    allow_tf32(roof == "tf32")
    kind = getattr(torch, dtype_of(roof))
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    timing = time_launches([lambda: torch.matmul(a, b, out=out)], device)
    return {"tflops": rounded(2 * side**3 / timing.min_us / 1e6), "side": side, **timing.fields()}


def _first_line(command: list[str], word: str = "") -> str | None:
    try:
        text = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((line.strip() for line in text.splitlines() if word in line and line.strip()), None)
