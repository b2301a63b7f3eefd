# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution run`: pictures and arrays in, classes and .npz out."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from command_line import TESTS, run_cli
from library_fixture import COLOURS, PICTURE_SIZE, affine_library, colour_library, pair_library
from PIL import Image


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("run") / "colour.so")


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affine_library(tmp_path_factory.mktemp("run") / "affine.so")


def green_picture(path: Path) -> Path:
    Image.new("RGB", (40, 30), (0, 250, 0)).save(path)
    return path


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(np.asarray(logits, np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_picture(tmp_path: Path, colour: Path) -> None:
    result = run_cli("run", colour, "--input", green_picture(tmp_path / "green.png"))
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["green", "blue", "red"]
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    red, green, blue = softmax((np.array([0, 250, 0]) - mean) / std)
    assert [line.split()[1] for line in lines] == [f"{p:.2%}" for p in (green, blue, red)]
    assert [line.count("█") for line in lines] == [round(p * 40) for p in (green, blue, red)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_picture_for_half_types(tmp_path: Path, dtype: str) -> None:
    library = colour_library(tmp_path / "half.so", dtype)
    picture = green_picture(tmp_path / "green.png")
    result = run_cli("run", library, "--input", picture, "--top-k", 1, "--output", tmp_path / "out.npz")
    assert result.status == 0 and result.out.split()[0] == "green"
    with np.load(tmp_path / "out.npz") as saved:
        # .npz has no bfloat16
        assert saved["logits"].dtype == (np.float16 if dtype == "float16" else np.float32)
        assert saved["logits"].argmax() == 1


def test_array_output_and_json(tmp_path: Path, colour: Path, rng: np.random.Generator) -> None:
    x = rng.standard_normal((9, 3, *PICTURE_SIZE), np.float32)
    np.save(tmp_path / "x.npy", x)
    result = run_cli(
        "run", colour, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz", "--top-k", 2, "--json"
    )
    assert (result.status, result.err) == (0, "")
    with np.load(tmp_path / "y.npz") as saved:
        assert saved.files == ["logits"]
        np.testing.assert_allclose(saved["logits"], x.astype(np.float64).mean((2, 3)), atol=1e-6)
        probabilities = softmax(saved["logits"])
    answers = json.loads(result.out)
    assert len(answers) == 9
    for answer, row in zip(answers, probabilities, strict=True):
        assert [entry["class"] for entry in answer] == np.argsort(-row)[:2].tolist()
        assert [entry["name"] for entry in answer] == [COLOURS[entry["class"]] for entry in answer]
        np.testing.assert_allclose([entry["probability"] for entry in answer], np.sort(row)[:0:-1], rtol=1e-6)


def test_several_pictures_are_numbered(tmp_path: Path, colour: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3, *PICTURE_SIZE), np.float32))
    lines = run_cli("run", colour, "--input", tmp_path / "x.npy", "--top-k", 1).out.splitlines()
    assert [lines[0], lines[2]] == ["picture 0", "picture 1"] and len(lines) == 4


def test_classes_without_names(tmp_path: Path) -> None:
    library = colour_library(tmp_path / "nameless.so", classes=None)
    result = run_cli("run", library, "--input", green_picture(tmp_path / "green.png"), "--top-k", 10)
    assert [line.split()[:2] for line in result.out.splitlines()] == [["class", "1"], ["class", "2"], ["class", "0"]]


def test_nan_is_shown_as_nan(tmp_path: Path, colour: Path) -> None:
    x = np.zeros((1, 3, *PICTURE_SIZE), np.float32)
    x[0, 1, 2, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    assert "nan%" in run_cli("run", colour, "--input", tmp_path / "x.npy").out
    result = run_cli("run", colour, "--input", tmp_path / "x.npy", "--json", "--output", tmp_path / "y.npz")
    # JSON knows no NaN
    assert [entry["probability"] for entry in json.loads(result.out)[0]] == [None] * 3
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_array_equal(np.isnan(saved["logits"]), [[False, True, False]])


def test_named_inputs_and_outputs(tmp_path: Path, rng: np.random.Generator) -> None:
    library = pair_library(tmp_path / "pair.so")
    a, b = rng.standard_normal((2, 3, 4), np.float32)
    np.savez(tmp_path / "in.npz", b=b, a=a, unused=a)
    result = run_cli("run", library, "--input", tmp_path / "in.npz", "--output", tmp_path / "out.npz")
    assert result.out.splitlines() == ["sum: float32 [3, 4]", "product: float32 [3, 4]"]
    with np.load(tmp_path / "out.npz") as saved:
        np.testing.assert_array_equal(saved["sum"], a + b)
        np.testing.assert_array_equal(saved["product"], a * b)
    data = json.loads(run_cli("run", library, "--input", tmp_path / "in.npz", "--json").out)
    assert data["product"] == {"shape": [3, 4], "dtype": "float32"}
    np.savez(tmp_path / "lacks.npz", a=a)
    assert "lacks b; it holds a" in run_cli("run", library, "--input", tmp_path / "lacks.npz").error_line()
    np.save(tmp_path / "one.npy", a)
    assert "takes 2 inputs (a, b), got 1" in run_cli("run", library, "--input", tmp_path / "one.npy").error_line()


def test_bfloat16_arrays_survive_the_file(tmp_path: Path, rng: np.random.Generator) -> None:
    library = colour_library(tmp_path / "half.so", "bfloat16")
    x = rng.standard_normal((1, 3, *PICTURE_SIZE)).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "x.npy", x)
    assert run_cli("run", library, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npz").status == 0
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_allclose(saved["logits"], x.astype(np.float64).mean((2, 3)), atol=4e-3)


class RunsCode:
    """What a pickle may do: here it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickles_are_not_run(tmp_path: Path, affine: Path) -> None:
    array = np.array([RunsCode(tmp_path / "ran")], dtype=object)
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=array)
    for name in ("x.npy", "x.npz"):
        assert "without pickle" in run_cli("run", affine, "--input", tmp_path / name).error_line()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("shape", [(10**9, 4), (2**40, 2**40), (-1, -4), (3, 4)])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_headers_that_promise_too_much(tmp_path: Path, affine: Path, suffix: str, shape: tuple[int, int]) -> None:
    """No memory is taken for what is not there."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    data, path = header.getvalue() + bytes(32), tmp_path / f"x.{suffix}"
    if suffix == "npy":
        path.write_bytes(data)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", data)
    line = run_cli("run", affine, "--input", path).error_line()
    assert f"its header says float32 {list(shape)}" in line and "32 follow" in line


def test_inputs_that_are_no_files(tmp_path: Path, affine: Path, colour: Path) -> None:
    for name in ("folder", "folder.npy", "folder.npz"):
        (tmp_path / name).mkdir()
        assert "has no pictures in it" in run_cli("run", colour, "--input", tmp_path / name).error_line()
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    twice = ("--output", tmp_path / "x.npz", "--output", tmp_path / "y.npz", "--input", tmp_path / "x.npy")
    assert "'--output' was given more than once" in run_cli("run", affine, *twice).error_line()


def test_an_output_that_is_no_file(tmp_path: Path, affine: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    (tmp_path / "link.npz").symlink_to("far.npz")
    assert run_cli("run", affine, "--input", tmp_path / "x.npy", "--output", tmp_path / "link.npz").status == 0
    assert (tmp_path / "link.npz").is_symlink() and np.load(tmp_path / "far.npz")["y"].tolist() == [[1.0] * 4]


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_arrays(tmp_path: Path, affine: Path, rng: np.random.Generator, suffix: str) -> None:
    whole = tmp_path / f"whole.{suffix}"
    x = rng.standard_normal((500, 4), np.float32)
    np.save(whole, x) if suffix == "npy" else np.savez_compressed(whole, x=x)
    data = whole.read_bytes()
    middle = bytearray(data)
    middle[len(data) // 2 : len(data) // 2 + 50] = rng.bytes(50)
    path = tmp_path / f"damaged.{suffix}"
    # a .npy has no checksum: damage in its middle is other numbers
    for content in (b"", b"text", data[:100], data[: len(data) // 2], *([middle] if suffix == "npz" else [])):
        path.write_bytes(content)
        assert str(path) in run_cli("run", affine, "--input", path).error_line()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 4)), "must be float32, got float64"),
        (np.zeros((1, 5), np.float32), "must have shape (batch, 4)"),
        (np.zeros(4, np.float32), "got (4,)"),
        (np.zeros((1, 4), np.int64), "got int64"),
        (np.array(["text"]), "got (1,)"),
    ],
)
def test_wrong_arrays(tmp_path: Path, affine: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    assert message in run_cli("run", affine, "--input", tmp_path / "x.npy").error_line()


def test_pictures_that_cannot_be_used(tmp_path: Path, affine: Path, colour: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert "is no picture" in run_cli("run", colour, "--input", text).error_line()
    for name in ("none.png", "none.npy"):
        assert "does not exist" in run_cli("run", colour, "--input", tmp_path / name).error_line()
    picture = green_picture(tmp_path / "green.png")
    assert "does not say how to prepare a picture" in run_cli("run", affine, "--input", picture).error_line()


@pytest.mark.parametrize("output", ["missing/out.npz", "file/out.npz", "."])
def test_outputs_that_cannot_be_written(tmp_path: Path, colour: Path, output: str) -> None:
    (tmp_path / "file").write_text("a file")
    picture = green_picture(tmp_path / "green.png")
    before = sorted(tmp_path.rglob("*"))
    line = run_cli("run", colour, "--input", picture, "--output", tmp_path / output).error_line()
    assert f"cannot write {tmp_path / output}" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")
def test_devices(tmp_path: Path, colour: Path) -> None:
    picture = green_picture(tmp_path / "green.png")
    assert "unknown device 'gpu'" in run_cli("run", colour, "--input", picture, "--device", "gpu").error_line()
    assert "compiled for cpu" in run_cli("run", colour, "--input", picture, "--device", "cuda").error_line()
    library = colour_library(tmp_path / "cuda.so", device_type="cuda")
    assert "no NVIDIA driver" in run_cli("run", library, "--input", picture).error_line()


def test_help_says_what_a_library_is() -> None:
    assert "A library is a program: load what you trust." in run_cli("run", "--help").out


def run_process(*words: object, stdout: object = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own, with the streams that a shell would give it."""
    return subprocess.run(
        [sys.executable, "-m", "tvm_involution", *map(str, words)],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), **environment},
    )


@pytest.mark.parametrize(
    ("environment", "bar"),
    [({"LC_ALL": "C"}, "█"), ({"PYTHONIOENCODING": "latin-1"}, "#"), ({"LC_ALL": "C", "PYTHONUTF8": "0"}, "")],
)
def test_terminals_with_few_letters(tmp_path: Path, environment: dict[str, str], bar: str) -> None:
    library = colour_library(tmp_path / "x.so", classes=("röt", "grün", "青"))
    done = run_process("run", library, "--input", green_picture(tmp_path / "green.png"), **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    assert bar in done.stdout.decode(encoding, errors="replace") and done.stdout.count(b"\n") == 3


def test_output_that_nobody_takes(tmp_path: Path, affine: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run_process("inspect", affine, stdout=full)
    line = b"tvm-involution: cannot write the standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)
    reader, writer = os.pipe()
    os.close(reader)  # as of `| head`, which has seen enough
    done = run_process("inspect", affine, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_names_of_files_in_no_encoding(tmp_path: Path, colour: Path) -> None:
    picture = green_picture(tmp_path / "green.png")
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xffn.png"))
    picture.rename(odd)
    done = run_process("run", colour, "--input", odd, "--output", odd.with_suffix(".npz"))
    assert (done.returncode, done.stderr) == (0, b"") and odd.with_suffix(".npz").exists()
    assert run_process("inspect", odd).stderr.count(b"\n") == 1


def test_what_is_read_is_not_overwritten(small_library: Path, tmp_path: Path) -> None:
    """Neither by its own name nor by another."""
    library, array, link = tmp_path / "net.so", tmp_path / "x.npy", tmp_path / "link.npz"
    shutil.copy(small_library, library)
    np.save(array, np.zeros((1, 3, 32, 32), np.float32))
    link.symlink_to(array)
    before = {file: file.read_bytes() for file in (library, array)}
    for output in (library, array, link):
        result = run_cli("run", library, "--input", array, "--output", output)
        assert result.status == 2 and "would be overwritten" in result.err and result.err.count("\n") == 1
    assert {file: file.read_bytes() for file in before} == before
    assert run_cli("run", library, "--input", array, "--output", tmp_path / "y.npz").status == 0
