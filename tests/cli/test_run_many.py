# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution run` on folders, patterns and several pictures: every picture once, also where it is killed."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_line import TESTS, run_cli
from library_fixture import PIXELS, affine_library, colour_library, whole_library
from PIL import Image


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("many") / "colour.so", batch_sizes=(1, 4))


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    boxes = np.array([[[0, 0, 4, 4], [1, 2, 5, 6], [0, 0, 0, 0]]], np.float32)
    scores, labels = np.array([[0.9, 0.4, 0.0]], np.float32), np.array([[1, 0, 0]])
    outputs = {"boxes": boxes, "scores": scores, "labels": labels}
    return whole_library(tmp_path_factory.mktemp("many") / "detector.so", "detection", outputs)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (path := tmp_path / "photos").mkdir()
    for i, name in enumerate(["red", "green", "blue"] * 3):
        Image.new("RGB", (40, 30), PIXELS[name]).save(path / f"{i}-{name}.png")
    return path


def names(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.iterdir())


def test_json_lines(folder: Path, colour: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    result = run_cli("run", colour, "--input", folder, "--output", output, "--top-k", 1)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("9 of 9 pictures in ") and "pictures/s" in result.out
    entries = [json.loads(line) for line in output.read_text().splitlines()]
    assert [entry["input"] for entry in entries] == names(folder)
    for entry in entries:
        assert entry["classes"][0]["name"] in entry["input"] and len(entry["classes"]) == 1
    before = output.read_bytes()
    assert "all pictures are answered already" in run_cli("run", colour, "--input", folder, "--output", output).out
    assert output.read_bytes() == before


def test_several_inputs_on_the_screen(folder: Path, colour: Path) -> None:
    words = ("--input", folder / "1-green.png", "--input", folder / "*-red.png", "--input", folder / "0-red.png")
    lines = run_cli("run", colour, *words).out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        str(folder / name) for name in ("1-green.png", "0-red.png", "3-red.png", "6-red.png")
    ]
    assert [line.split()[0] for line in lines if line.startswith(" ")][::3] == ["green", "red", "red", "red"]
    entries = [json.loads(line) for line in run_cli("run", colour, *words, "--json").out.splitlines()]
    assert [entry["classes"][0]["name"] for entry in entries] == ["green", "red", "red", "red"]


def test_csv(folder: Path, colour: Path, detector: Path, tmp_path: Path) -> None:
    assert run_cli("run", colour, "--input", folder, "--output", tmp_path / "a.csv", "--top-k", 2).status == 0
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name_1"] in row["input"] for row in rows] == [True] * 9
    assert float(rows[0]["probability_1"]) > 0.9 and "class_3" not in rows[0]
    assert run_cli("run", detector, "--input", folder, "--output", tmp_path / "b.csv").status == 0
    with open(tmp_path / "b.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and [row["name"] for row in rows[:2]] == ["green", "red"]
    none = ("--output", tmp_path / "c.csv", "--score-threshold", 0.95)
    assert run_cli("run", detector, "--input", folder, *none).status == 0
    with open(tmp_path / "c.csv", newline="") as file:
        assert [(row["input"], row["name"]) for row in csv.DictReader(file)] == [(name, "") for name in names(folder)]


def test_parquet(folder: Path, colour: Path, detector: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    output = tmp_path / "a.parquet"
    assert run_cli("run", colour, "--input", folder / "*-red.png", "--output", output).status == 0
    assert run_cli("run", colour, "--input", folder, "--output", output).status == 0
    rows = parquet.read_table(output).to_pylist()
    assert sorted(row["input"] for row in rows) == names(folder)
    assert all(row["name_1"] in row["input"] and row["probability_1"] > 0.9 for row in rows)
    assert run_cli("run", detector, "--input", folder, "--output", tmp_path / "b.parquet").status == 0
    assert len(parquet.read_table(tmp_path / "b.parquet").to_pylist()) == 18
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet", "photos"]


def test_arrays_of_all(folder: Path, colour: Path, tmp_path: Path) -> None:
    assert run_cli("run", colour, "--input", folder, "--output", tmp_path / "a.npz").status == 0
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["input"].tolist() == names(folder) and arrays["logits"].shape == (9, 3)
        assert arrays["logits"].argmax(1).tolist() == [0, 1, 2] * 3


def test_drawn_into_a_folder(folder: Path, colour: Path, detector: Path, tmp_path: Path) -> None:
    (folder / "more").mkdir()
    Image.new("L", (40, 30)).save(folder / "more" / "1-green.jpg")
    result = run_cli("run", detector, "--input", folder, "--draw", tmp_path / "drawn")
    assert (result.status, result.err) == (0, "")
    assert {"0-red.png", "1-green.png", "1-green-2.png"} <= {path.name for path in (tmp_path / "drawn").iterdir()}
    (tmp_path / "file").touch()
    assert (
        "is a file; of several" in run_cli("run", colour, "--input", folder, "--draw", tmp_path / "file").error_line()
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("kind", ["colour", "detector"])
def test_where_it_was_cut_off_it_goes_on(
    request: pytest.FixtureRequest, rng: np.random.Generator, folder: Path, tmp_path: Path, suffix: str, kind: str
) -> None:
    """A file that ends anywhere becomes what it would have been."""
    library = request.getfixturevalue(kind)
    whole = tmp_path / f"whole{suffix}"
    words = ("run", library, "--input", folder, "--output")
    assert run_cli(*words, whole).status == 0
    content = whole.read_bytes()
    for end in (0, 1, len(content) - 1, *rng.integers(0, len(content), 5)):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes(content[:end])
        assert run_cli(*words, cut).status == 0
        assert cut.read_bytes() == content, end


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_killed_it_goes_on(tmp_path: Path, colour: Path, suffix: str) -> None:
    if suffix == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
    (folder := tmp_path / "photos").mkdir()
    picture = Image.new("RGB", (1200, 900), PIXELS["green"])
    picture.save(folder / "0.jpg")
    for i in range(1, 150):
        os.link(folder / "0.jpg", folder / f"{i}.jpg")
    output = tmp_path / f"out.{suffix}"
    partial = output if suffix == "jsonl" else tmp_path / "out.parquet.jsonl"
    words = ["run", str(colour), "--input", str(folder), "--output", str(output)]
    path = os.pathsep.join([str(TESTS.parent), *sys.path])
    command = [sys.executable, "-m", "tvm_involution", *words]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while (not partial.exists() or partial.read_bytes().count(b"\n") < 20) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    answered = partial.read_bytes().count(b"\n")
    assert 20 <= answered < 150
    result = run_cli(*words)
    assert result.status == 0 and f"{150 - answered} of {150 - answered} pictures" in result.out
    if suffix == "jsonl":
        inputs = [json.loads(line)["input"] for line in output.read_text().splitlines()]
    else:
        inputs = [row["input"] for row in parquet.read_table(output).to_pylist()]
    assert len(inputs) == 150 and set(inputs) == {str(folder / f"{i}.jpg") for i in range(150)}


def test_a_picture_that_cannot_be_read_is_told_at_the_end(folder: Path, colour: Path, tmp_path: Path) -> None:
    (folder / "4-green.png").write_bytes(b"nothing")
    for suffix in ("jsonl", "csv"):
        output = tmp_path / f"out.{suffix}"
        result = run_cli("run", colour, "--input", folder, "--output", output)
        assert result.status == 2 and result.err.count("\n") == 1
        assert "1 of 9 pictures could not be read" in result.err and "the other 8 are answered" in result.err
        (line,) = [line for line in output.read_text().splitlines() if "4-green" in line]
        assert "is no picture that can be read" in line and len(output.read_text().splitlines()) >= 9


def test_what_cannot_be_gone_on_from(folder: Path, colour: Path, detector: Path, tmp_path: Path) -> None:
    for name, content in (("a.jsonl", "hello\n"), ("b.jsonl", "[]\n"), ("c.csv", "a,b\n1,2\n"), ("d.csv", '"\n')):
        (file := tmp_path / name).write_text(content)
        line = run_cli("run", colour, "--input", folder, "--output", file).error_line()
        assert "has no answers of such a run" in line and file.read_text() == content
    (file := tmp_path / "e.csv").touch()
    assert run_cli("run", detector, "--input", folder, "--output", file).status == 0
    assert "has no answers of such a run" in run_cli("run", colour, "--input", folder, "--output", file).error_line()
    os.utime(file, (1, 1))
    assert "of before" in run_cli("run", detector, "--input", folder, "--output", file).error_line()
    with open(tmp_path / "f.jsonl", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        line = run_cli("run", colour, "--input", folder, "--output", tmp_path / "f.jsonl").error_line()
        assert "another run is writing" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--input", "none"), "none does not exist"),
        (("--input", "*.none"), "no file fits *.none"),
        (("--input", "empty"), "empty has no pictures"),
        (("--input", "a.png", "--input", "x.npy"), "x.npy holds arrays"),
        (("--input", "a.png", "--input", "b.png", "--output", "x.txt"), "expected .npz, .jsonl, .csv or .parquet"),
        (("--input", "a.png", "--output", "none/x.jsonl"), "cannot write none/x.jsonl"),
        (("--input", "a.png", "--output", "empty.jsonl"), "empty.jsonl is no file"),
    ],
)
def test_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: Path, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(name)
    np.save("x.npy", np.zeros((1, 3, 8, 12), np.float32))
    for name in ("empty", "empty.jsonl"):
        Path(name).mkdir()
    before = sorted(Path().iterdir())
    assert message in run_cli("run", colour, *words).error_line()
    assert sorted(Path().iterdir()) == before


def test_outputs_that_are_no_table(tmp_path: Path, folder: Path) -> None:
    unknown = colour_library(tmp_path / "unknown.so", task="unknown", classes=None)
    line = run_cli("run", unknown, "--input", folder, "--output", tmp_path / "x.csv").error_line()
    assert "are no table; write them to .jsonl or .npz" in line and not (tmp_path / "x.csv").exists()
    assert run_cli("run", unknown, "--input", folder, "--output", tmp_path / "x.jsonl").status == 0
    first = json.loads((tmp_path / "x.jsonl").read_text().splitlines()[0])
    assert len(first["outputs"]["logits"][0]) == 3
    affine = affine_library(tmp_path / "affine.so")
    assert "does not say how to prepare" in run_cli("run", affine, "--input", folder).error_line()
