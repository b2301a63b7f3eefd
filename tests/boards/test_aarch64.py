# SPDX-License-Identifier: Apache-2.0
"""Libraries for AArch64 run there: in qemu, by an arm64 Python and by the C++ example that Zig built.

Each is compared with the same network on this machine, by relative norm: sums are ordered otherwise.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import ziglang
from conftest import tiny_rednet
from dense_networks import small_retinanet

import tvm_involution as ti

ROOT = Path(__file__).parents[2]
TARGET = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72", "num-cores": 4}'

pytestmark = pytest.mark.aarch64

# what runs on the board: each library NAME.so on NAME.npy
_PROGRAM = """
import sys
import numpy as np
import tvm_involution as ti
folder = sys.argv[1]
for name in sys.argv[2:]:
    net = ti.load(f"{folder}/{name}.so")
    x = np.load(f"{folder}/{name}.npy").astype(net.metadata.inputs[0].dtype)
    # what other kinds of numbers there are a file cannot say
    outputs = {key: value.astype("float32") for key, value in net.run(x).items()}
    np.savez(f"{folder}/{name}.npz", **outputs)
"""


def relative(found: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(np.float64(found) - want) / np.linalg.norm(np.float64(want)))


@pytest.fixture(scope="module")
def machine() -> Path:
    """The folder with qemu, Python and the wheels."""
    folder = Path(os.environ.get("AARCH64_MACHINE", ""))
    assert (folder / "ready").is_file(), "`make test-aarch64` sets it up"
    return folder


def on_the_board(machine: Path, *words: object) -> str:
    """Run a program of that machine, of whose Python the path is `python`."""
    root = machine / "root"
    paths = {
        "LD_LIBRARY_PATH": os.pathsep.join(str(machine / "site" / name / "lib") for name in ("tvm", "tvm_ffi")),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(machine / "site")]),
    }
    given = [word for name, value in paths.items() for word in ("-E", f"{name}={value}")]
    (python,) = (root / "usr" / "bin").glob("python3.*")
    program = [python if word == "python" else word for word in words]
    command = [root / "usr" / "bin" / "qemu-aarch64-static", "-L", root, *given, *program]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def example(machine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The C++ example, which Zig builds while the libraries are compiled: where to wait for it, and what it makes."""
    folder = tmp_path_factory.mktemp("example")
    zig = Path(ziglang.__file__).parent / "zig"
    config = f"{sys.executable} -m tvm_involution config --wheels {machine / 'site'}"
    command = ["make", "-C", ROOT / "examples" / "cpp", f"OUT={folder}", f"CONFIG={config}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ZIG_GLOBAL_CACHE_DIR": str(machine / "zig")}
    with subprocess.Popen(
        [*command, f"CXX={zig} c++ -target aarch64-linux-gnu"], env=environment, text=True, stderr=subprocess.PIPE
    ) as building:
        yield building, folder / "classify"
        building.kill()


@pytest.fixture(scope="module")
def rednet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A RedNet for the board in three types, an input of batch 3, and what this machine answers to it in float32."""
    folder = tmp_path_factory.mktemp("aarch64")
    x = np.random.default_rng().standard_normal((3, 3, 32, 32), np.float32)
    for dtype in ("float32", "float16", "bfloat16"):
        ti.compile(tiny_rednet(), TARGET, image_size=(32, 32), dtype=dtype).save(folder / f"{dtype}.so")
        np.save(folder / f"{dtype}.npy", x)
    ti.compile(tiny_rednet(), image_size=(32, 32)).save(folder / "here.so")
    return folder, x, ti.load(folder / "here.so")(x)


def test_networks(machine: Path, rednet: tuple[Path, np.ndarray, np.ndarray], rng: np.random.Generator) -> None:
    """A RedNet in float32 and half types, and a detector, whose boxes are those of this machine."""
    folder, _, want = rednet
    picture = rng.standard_normal((1, 3, 64, 64), np.float32)
    np.save(folder / "detector.npy", picture)
    detector = (small_retinanet(), (torch.from_numpy(picture),))
    ti.compile(detector, TARGET).save(folder / "detector.so")
    ti.compile(detector).save(folder / "detector-here.so")
    on_the_board(machine, "python", "-c", _PROGRAM, folder, "float32", "float16", "bfloat16", "detector")
    for dtype, most in (("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 1e-2)):
        (found,) = np.load(folder / f"{dtype}.npz").values()
        assert relative(found, want) < most, dtype
    found = np.load(folder / "detector.npz")
    for name, value in ti.load(folder / "detector-here.so").run(picture).items():
        assert np.linalg.norm(value) > 0 and relative(found[name], value) < 1e-4, name


def test_cpp_example(
    machine: Path, rednet: tuple[Path, np.ndarray, np.ndarray], example: tuple[subprocess.Popen[str], Path]
) -> None:
    """On the board it answers as Python does there, to the bit."""
    folder, _, want = rednet
    building, program = example
    _, problems = building.communicate(timeout=900)
    assert building.returncode == 0, problems
    on_the_board(machine, program, folder / "float32.so", folder / "float32.npy", folder / "y.raw")
    found = np.fromfile(folder / "y.raw", np.float32).reshape(want.shape)
    assert relative(found, want) < 1e-5
    on_the_board(machine, "python", "-c", _PROGRAM, folder, "float32")
    (python,) = np.load(folder / "float32.npz").values()
    np.testing.assert_array_equal(found, python)
