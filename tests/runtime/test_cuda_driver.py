# SPDX-License-Identifier: Apache-2.0
"""What is missing for CUDA is named: tried with drivers of a few lines of C."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def problem(folder: Path, version: int, gpus: int, runtime: bool, wheel: bool = False) -> str:
    """Return what `cuda_problem` says beside a driver of `version` with `gpus`."""
    build(
        folder / "libcuda.so.1",
        f"""
        int cuDriverGetVersion(int *v) {{ *v = {version}; return 0; }}
        int cuInit(unsigned flags) {{ return {0 if gpus else 100}; }}
        int cuDeviceGetCount(int *n) {{ *n = {gpus}; return 0; }}""",
    )
    if runtime:
        build(folder / "libcudart.so.99", "int cudart;")
    site = folder / "site"
    if wheel:
        (site / "nvidia" / "cu13" / "lib").mkdir(parents=True)
        build(site / "nvidia" / "cu13" / "lib" / "libcudart.so.99", "int cudart;")
    code = f"import sys; sys.path.insert(0, {str(site)!r}); " * wheel
    # a name that this machine has not
    code += "from tvm_involution.runtime import cuda_driver as c; c._RUNTIME_LIBRARY = 'libcudart.so.99'; "
    code += "print(c.cuda_problem())"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()


def build(library: Path, source: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)


def test_old_driver(tmp_path):
    said = problem(tmp_path, 12040, 1, True)
    assert "it is of CUDA 12.4" in said and "580 or newer" in said


def test_no_gpu(tmp_path):
    assert problem(tmp_path, 13000, 0, True).startswith("no NVIDIA GPU on this machine")


def test_no_runtime_library(tmp_path):
    assert problem(tmp_path, 13010, 1, False).startswith("libcudart.so.99 is missing: pip install")


@pytest.mark.parametrize("where", [{"runtime": True}, {"runtime": False, "wheel": True}], ids=["system", "wheel"])
def test_all_is_there(tmp_path, where):
    assert problem(tmp_path, 13000, 1, **where) == ""
