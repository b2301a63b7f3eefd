# SPDX-License-Identifier: Apache-2.0
"""Libraries for AArch64 run there: in qemu, by an arm64 Python and by the C++ example that Zig built.

Each is compared with the same network on this machine, by relative norm: sums are ordered otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import ziglang
from command_line import run_cli
from conftest import tiny_rednet
from dense_networks import small_retinanet
from library_fixture import PIXELS
from PIL import Image
from programs import extremes
from tvm import te

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.frontend.network import resolve_network
from tvm_involution.lowering.link import export_library, linker_of
from tvm_involution.relax.passes.pack_weights import packed_weight
from tvm_involution.runtime.preprocessing import crop_picture, picture_to_array, read_picture
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu.dot_int8 import wants_signed
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed

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


# runs the programs NAME.so on NAME.npz, arrays in order of their names, the last of which is what must come out
_PRODUCTS = """
import sys
import numpy as np
import tvm_ffi
from tvm_involution.runtime.tvm_runtime import load_runtime
load_runtime()
folder = sys.argv[1]
for name in sys.argv[2:]:
    *arrays, want = np.load(f"{folder}/{name}.npz").values()
    found = np.zeros_like(want)
    main = tvm_ffi.load_module(f"{folder}/{name}.so")["main"]
    main(*(tvm_ffi.from_dlpack(array) for array in (*arrays, found)))
    assert np.array_equal(found, want), (name, abs(found - want).max(), (found != want).mean())
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


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `examples/finetune.py` leaves: that in $FINE_TUNED, else of a step on thirty small pictures."""
    if "FINE_TUNED" in os.environ:
        return Path(os.environ["FINE_TUNED"])
    photos, out = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("out")
    for name, pixel in PIXELS.items():
        (photos / name).mkdir()
        for number in range(10):
            Image.new("RGB", (40 + number, 30), pixel).save(photos / name / f"{number}.png")
    example = [sys.executable, ROOT / "examples" / "finetune.py", photos, "--output", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*example, "--epochs", "1", "--image-size", "64"], env=environment, check=True, timeout=600)
    return out


def test_the_same_answers_everywhere(
    machine: Path, fine_tuned: Path, example: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    """A fine-tuned network on pictures in a folder: Python, the commands, Ray, C++, and the board in Python and C++."""
    ray = pytest.importorskip("ray")
    library, held_out = fine_tuned / "finetuned.so", fine_tuned / "held_out"
    net, predict = ti.load(library), ti.Predictor(library)
    pictures = sorted(str(path) for path in held_out.rglob("*.png"))
    size = net.metadata.inputs[0].shape[2:]
    prepare = net.metadata.preprocessing
    x = np.concatenate(
        [picture_to_array(crop_picture(read_picture(file), prepare, size), prepare) for file in pictures]
    )
    logits = net(x)
    names = [net.metadata.classes[i] for i in logits.argmax(1)]
    module = resolve_network("rednet26", checkpoint=fine_tuned / "finetuned.pth", image_size=tuple(size)).module
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    assert relative(logits, expected) < 1e-5 and (logits.argmax(1) == expected.argmax(1)).all()

    assert [(answer.source, answer.classes[0].name) for answer in predict(held_out)] == list(
        zip(pictures, names, strict=True)
    )
    for words in ((), ("--ray", "local")):
        answers = tmp_path / f"{len(words)}.jsonl"
        if words:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            words = ("--ray", ray.init(num_cpus=2, include_dashboard=False).address_info["gcs_address"])
        assert run_cli("run", library, "--input", held_out, "--output", answers, *words).status == 0
        found = {row["input"]: row["classes"][0]["name"] for row in map(json.loads, answers.read_text().splitlines())}
        assert found == dict(zip(pictures, names, strict=True))
    ray.shutdown()
    right = sum(Path(file).parent.name == name for file, name in zip(pictures, names, strict=True))
    evaluated = run_cli("evaluate", library, "--data", f"imagenet:{held_out}")
    assert f"{100 * right / len(pictures):.2f} %" in evaluated.out, evaluated

    np.save(tmp_path / "board.npy", x)
    ti.compile("rednet26", TARGET, checkpoint=fine_tuned / "finetuned.pth", batch=(1, 8), image_size=tuple(size)).save(
        tmp_path / "board.so"
    )
    building, on_board = example
    building.communicate(timeout=900)
    config = f"CONFIG={sys.executable} -m tvm_involution config"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    make = ["make", "-C", ROOT / "examples" / "cpp", f"OUT={tmp_path}", config, "CXX=g++"]
    subprocess.run(make, env=environment, check=True, timeout=600, capture_output=True)
    subprocess.run([tmp_path / "classify", library, tmp_path / "board.npy", tmp_path / "here.raw"], check=True)
    np.testing.assert_array_equal(np.fromfile(tmp_path / "here.raw", np.float32).reshape(logits.shape), logits)
    on_the_board(machine, on_board, tmp_path / "board.so", tmp_path / "board.npy", tmp_path / "there.raw")
    on_the_board(machine, "python", "-c", _PROGRAM, tmp_path, "board")
    there = np.fromfile(tmp_path / "there.raw", np.float32).reshape(logits.shape)
    (python,) = np.load(tmp_path / "board.npz").values()
    np.testing.assert_array_equal(there, python)
    assert relative(there, expected) < 1e-5
    assert [net.metadata.classes[i] for i in there.argmax(1)] == names


# batch, height, width, inputs, outputs, window, stride, padding
PRODUCTS = [(1, 14, 14, 64, 96, 1, 1, 0), (2, 7, 9, 13, 35, 1, 1, 0), (1, 9, 11, 18, 49, 3, 2, 1)]


def test_products_of_bytes(machine: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """By `sdot`, by i8mm's instructions and without, each equal to an integer reference, of extreme bytes."""
    names = []
    for cpu in ("cortex-a76", "neoverse-n2", "cortex-a72"):
        target = resolve_target(f'{{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "{cpu}"}}')
        byte, low = ("int8", -128) if wants_signed(target) else ("uint8", 0)
        for number, (n, h, w, i, o, k, stride, padding) in enumerate(PRODUCTS):
            x = extremes(rng, (n, h, w, i), low, low + 255, byte)
            weight = extremes(rng, (o, i, k, k), -127, 127, "int8")
            packed = packed_weight(target, weight, "int8")
            exact = torch.from_numpy(x.astype(np.float64)).permute(0, 3, 1, 2), torch.from_numpy(weight.astype(float))
            want = torch.nn.functional.conv2d(*exact, None, stride, padding).permute(0, 2, 3, 1).contiguous()
            inputs = [te.placeholder(array.shape, str(array.dtype), f"in{array.ndim}") for array in (x, packed)]
            output = conv2d_packed(*inputs, o, (stride,) * 2, (padding,) * 4, out_dtype="int32")
            func = te.create_prim_func([*inputs, output]).with_attr("global_symbol", "main")
            schedule, rule = default_schedule(func, target)
            assert schedule is not None and rule == "PackedGemm"
            built = lowering.build(schedule.mod, target)
            name = f"{cpu}-{number}"
            export_library(built, target, tmp_path / f"{name}.so", linker_of(target))
            np.savez(tmp_path / f"{name}.npz", a=x, b=packed, c=want.numpy().astype(np.int32))
            names.append(name)
    on_the_board(machine, "python", "-c", _PRODUCTS, tmp_path, *names)


def test_network_in_int8(machine: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    """As near to float32 as int8 is on this machine, with bytes that have a sign and without."""
    shown, x = (rng.standard_normal((n, 3, 32, 32)).astype(np.float32) for n in (8, 3))
    net = tiny_rednet().eval()
    with torch.no_grad():
        want = net(torch.from_numpy(x)).numpy()
    cpus = ("cortex-a76", "neoverse-n2", "cortex-a72")
    for cpu in cpus:
        target = f'{{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "{cpu}"}}'
        ti.compile(net, target, image_size=(32, 32), dtype="int8", calibration=shown).save(tmp_path / f"{cpu}.so")
        np.save(tmp_path / f"{cpu}.npy", x)
    on_the_board(machine, "python", "-c", _PROGRAM, tmp_path, *cpus)
    answers = [next(iter(np.load(tmp_path / f"{cpu}.npz").values())) for cpu in cpus]
    for cpu, found in zip(cpus, answers, strict=True):
        assert 1e-5 < relative(found, want) < 0.05, cpu
        assert relative(found, answers[0]) < 0.01, cpu
