# SPDX-License-Identifier: Apache-2.0
"""`tvm_involution.hpp`: the example builds, answers as Python does to the bit, and refuses in the same words."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from library_fixture import affine_library

import tvm_involution as ti
from tvm_involution import UserError

ROOT = Path(__file__).parents[2]
CONFIG = f"{sys.executable} -m tvm_involution config"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def built(*command: str | Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    built("make", "-C", ROOT / "examples" / "cpp", f"OUT={folder}", f"CONFIG={CONFIG}", "CXX=g++", "CXXFLAGS=-O1 -Wall")
    return folder / "classify"


def run(program: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, words)]
    variables = {**os.environ, **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False)


def test_answers_to_the_bit(classify: Path, small_library: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """Batches that there are and one that is split; arrays with a header and raw ones; the five best classes."""
    net = ti.load(small_library)
    for batch in (1, 4, 7):
        x = rng.standard_normal((batch, 3, 32, 32), np.float32)
        want = net(x)
        np.save(tmp_path / "x.npy", x)
        x.tofile(tmp_path / "x.raw")
        for name in ("x.npy", "x.raw"):
            done = run(classify, small_library, tmp_path / name, tmp_path / "y.raw")
            assert done.returncode == 0 and not done.stderr
            found = np.fromfile(tmp_path / "y.raw", np.float32).reshape(batch, 10)
            np.testing.assert_array_equal(found, want)
        best = [[int(word) for word in line.split()[:2]] for line in done.stdout.splitlines()]
        assert best == [[i, c] for i in range(batch) for c in np.argsort(-want[i], kind="stable")[:5]]


def test_many_batches(classify: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    path = affine_library(tmp_path / "affine.so", batch_sizes=(2, 5))
    for batch in (1, 2, 3, 5, 11, 23):
        np.save(tmp_path / "x.npy", x := rng.standard_normal((batch, 4), np.float32))
        assert run(classify, path, tmp_path / "x.npy", tmp_path / "y.raw").returncode == 0
        np.testing.assert_array_equal(np.fromfile(tmp_path / "y.raw", np.float32).reshape(batch, 4), ti.load(path)(x))


def test_refused_in_the_same_words(classify: Path, tmp_path: Path) -> None:
    sound = affine_library(tmp_path / "sound.so")
    whole = sound.read_bytes()
    (tmp_path / "short.so").write_bytes(whole[:-1])
    (tmp_path / "flipped.so").write_bytes(whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:])
    affine_library(tmp_path / "foreign.so", triple="riscv64-linux-gnu")
    affine_library(tmp_path / "feature.so", cpu="znver9", cpu_features=("avx1024", "fma9"))
    affine_library(tmp_path / "version.so", tvm_version="0.28.1")
    affine_library(tmp_path / "mixed.so", mixed_by="a mean over the pictures")
    np.save(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((1, 5), np.float32))
    for name, array in (
        *((name, "x.npy") for name in ("none.so", ".", "short.so", "flipped.so", "foreign.so", "feature.so")),
        ("version.so", "x.npy"),
        ("mixed.so", "x.npy"),
        ("sound.so", "wide.npy"),
    ):
        with pytest.raises(UserError) as caught:
            ti.load(tmp_path / name)(np.load(tmp_path / array))
        done = run(classify, tmp_path / name, tmp_path / array)
        assert (done.returncode, done.stderr) == (2, f"classify: {caught.value}\n")
    done = run(classify, sound, tmp_path / "x.npy", TVM_NUM_THREADS="many")
    assert done.returncode == 2 and done.stderr.startswith("classify: TVM_NUM_THREADS is 'many'; expected a whole")
    assert run(classify, sound, tmp_path / "x.npy", TVM_NUM_THREADS="3").returncode == 0


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake")
def test_cmake_finds_it(tmp_path: Path) -> None:
    options = run_cli("config", "--cmake").out.split()
    built("cmake", "-S", ROOT / "examples" / "cpp", "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Debug", *options)
    built("cmake", "--build", tmp_path)
    assert run(tmp_path / "classify").returncode == 2


def test_config(tmp_path: Path) -> None:
    assert (Path(run_cli("config", "--includedir").out.strip()) / "tvm_involution.hpp").is_file()
    assert "--includedir" in run_cli("config").error_line()
    refused = run_cli("config", "--ldflags", "--wheels", tmp_path)
    assert refused.status == 2 and f"the package tvm is not in {tmp_path}" in refused.error_line()
