# SPDX-License-Identifier: Apache-2.0
"""What is missing for CUDA is named: tried with drivers of a few lines of C."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


NAMES = """
int cuGetErrorName(int code, const char **name) {
    *name = code == 803 ? "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" : 0;
    return *name ? 0 : 1;
}"""


def driver(version: int = 13000, gpus: int = 1, **fails: int) -> str:
    """Return the source of a driver of `version` with `gpus`, of which some functions fail with an error's number."""
    return f"""
        int cuDriverGetVersion(int *v) {{ *v = {version}; return {fails.get("cuDriverGetVersion", 0)}; }}
        int cuInit(unsigned flags) {{ return {fails.get("cuInit", 0)}; }}
        int cuDeviceGetCount(int *n) {{ *n = {gpus}; return {fails.get("cuDeviceGetCount", 0)}; }}"""


def problem(folder: Path, source: str, runtime: bool = True, wheel: bool = False) -> str:
    """Return what `cuda_problem` says beside a driver of that source, none where it is empty."""
    if source:
        build(folder / "libcuda.so.1", source)
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
    said = run_beside(folder, "-c", code)
    assert "\n" not in said
    return said


def run_beside(folder: Path, *arguments: str) -> str:
    """Run Python where the dynamic linker looks into `folder` first; return what it prints."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "COLUMNS": "400"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def build(library: Path, source: str) -> None:
    command = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    subprocess.run(command, input=source, text=True, check=True)


def test_old_driver(tmp_path):
    said = problem(tmp_path, driver(12040))
    assert "it is of CUDA 12.4" in said and "580 or newer" in said


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA driver")
def test_no_driver(tmp_path):
    said = problem(tmp_path, "")
    assert said.startswith("no NVIDIA driver on this machine (libcuda.so.1); install driver 580 or newer")


def test_a_driver_that_cannot_be_loaded(tmp_path):
    (tmp_path / "libcuda.so.1").write_bytes(b"not a library, and longer than the header of one" * 9)
    assert problem(tmp_path, "").startswith("the NVIDIA driver cannot be loaded (")


@pytest.mark.parametrize(
    ("fails", "words"),
    [
        ({"cuDriverGetVersion": 34}, ["cuDriverGetVersion: error 34;", "stub", "LD_LIBRARY_PATH"]),
        ({"cuDriverGetVersion": 999}, ["cuDriverGetVersion: error 999;", "see whether `nvidia-smi` runs"]),
        ({"cuInit": 803}, ["cuInit: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803);", "restart the machine"]),
        ({"cuInit": 802}, ["cuInit: error 802;", "nvidia-fabricmanager"]),
        ({"cuInit": 100}, ["no NVIDIA GPU that the driver can use, cuInit: error 100", "CUDA_VISIBLE_DEVICES"]),
        ({"cuDeviceGetCount": 3}, ["cuDeviceGetCount: error 3;", "by spawn"]),
    ],
)
def test_errors_have_their_numbers_and_remedies(tmp_path, fails, words):
    said = problem(tmp_path, driver(**fails) + NAMES)
    for word in words:
        assert word in said
    assert "CUDA 0.0" not in said


def test_errors_without_names(tmp_path):
    assert "cuInit: error 803; its library and its kernel module" in problem(tmp_path, driver(cuInit=803))


def test_another_library_of_that_name(tmp_path):
    said = problem(tmp_path, "int cuDriverGetVersion(int *v) { *v = 13000; return 0; }")
    assert said.startswith("the NVIDIA driver has no cuInit (libcuda.so.1); ") and "580 or newer" in said


def test_no_gpu(tmp_path):
    assert problem(tmp_path, driver(gpus=0)).startswith("no NVIDIA GPU that the driver can use: ")


def test_no_runtime_library(tmp_path):
    assert problem(tmp_path, driver(13010), runtime=False).startswith("libcudart.so.99 is missing: pip install")


@pytest.mark.parametrize("where", [{"runtime": True}, {"runtime": False, "wheel": True}], ids=["system", "wheel"])
def test_all_is_there(tmp_path, where):
    assert problem(tmp_path, driver(), **where) == ""


def test_targets_says_why_there_is_no_gpu(tmp_path):
    build(tmp_path / "libcuda.so.1", driver(12040))
    rows = json.loads(run_beside(tmp_path, "-m", "tvm_involution", "targets", "--json"))
    row = next(row for row in rows if row["name"] == "cuda")
    assert not row["present"]
    assert "none found: the NVIDIA driver is too old: it is of CUDA 12.4" in row["description"]
