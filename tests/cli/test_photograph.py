# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution run` of detectors and segmentation networks on a photograph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from library_fixture import whole_library
from PIL import Image

# input 8x12; the photograph of 32x24 is a quarter of its size there, in 8x6
BOXES = np.array([[[0, 0, 4, 4], [1, 2, 5, 6], [0, 0, 0, 0]]], np.float32)
SCORES, LABELS = np.array([[0.9, 0.4, 0.0]], np.float32), np.array([[1, 0, 0]])
MASKS = np.zeros((1, 3, 8, 12), bool)
MASKS[0, 0, :4] = MASKS[0, 1, 2:6, 1:5] = True


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    path = tmp_path / "photograph.png"
    Image.new("RGB", (24, 32), (200, 200, 200)).save(path)
    return path


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    outputs = {"boxes": BOXES, "scores": SCORES, "labels": LABELS, "masks": MASKS}
    return whole_library(tmp_path / "detector.so", "instance_segmentation", outputs, class_ids=(7, 9, 90))


@pytest.fixture
def segmentor(tmp_path: Path) -> Path:
    logits = np.zeros((1, 3, 8, 12), np.float32)
    logits[0, 2, :, :3] = 1
    logits[0, 1, :, 3:] = 1
    colours = ((1, 2, 3), (0, 255, 0), (0, 0, 255))
    return whole_library(tmp_path / "segmentor.so", "semantic_segmentation", {"logits": logits}, colours=colours)


def test_objects(detector: Path, photograph: Path) -> None:
    result = run_cli("run", detector, "--input", photograph)
    assert (result.status, result.err) == (0, "")
    assert [line.split() for line in result.out.splitlines()] == [
        ["green", "90.00%", "0,0", "-", "16,16"],
        ["red", "40.00%", "4,8", "-", "20,24"],
    ]
    assert len(run_cli("run", detector, "--input", photograph, "--score-threshold", 0.5).out.splitlines()) == 1
    assert "nothing" in run_cli("run", detector, "--input", photograph, "--score-threshold", 0.95).out


def test_objects_in_the_form_of_coco(detector: Path, photograph: Path) -> None:
    entries = json.loads(run_cli("run", detector, "--input", photograph, "--json", "--score-threshold", 0).out)
    assert [(e["category_id"], e["category_name"], e["bbox"]) for e in entries] == [
        (9, "green", [0, 0, 16, 16]),
        (7, "red", [4, 8, 16, 16]),
    ]
    mask = entries[0]["segmentation"]
    # 24 columns of 16 ones and 16 zeros
    assert mask == {"size": [32, 24], "counts": [0, *[16] * 48]}


def test_drawn_objects(detector: Path, photograph: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    assert run_cli("run", detector, "--input", photograph, "--draw", drawn).status == 0
    with Image.open(drawn) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (32, 24, 3)
    assert (pixels[31, 23] == 200).all() and (pixels[23, 12] != 200).any()


def test_classes_of_pixels(segmentor: Path, photograph: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.png"
    result = run_cli("run", segmentor, "--input", photograph, "--draw", drawn)
    assert (result.status, result.err) == (0, "")
    assert [line.split()[:2] for line in result.out.splitlines()] == [["green", "50.00%"], ["blue", "50.00%"]]
    with Image.open(drawn) as picture:
        pixels = np.asarray(picture).astype(int)
    # 0.4 of the photograph's grey and 0.6 of the class's colour
    assert pixels[16, 2].tolist() == [80, 80, 233] and pixels[16, 20].tolist() == [80, 233, 80]
    shares = json.loads(run_cli("run", segmentor, "--input", photograph, "--json").out)
    assert [(entry["class"], entry["name"]) for entry in shares] == [(1, "green"), (2, "blue")]
    assert sum(entry["share"] for entry in shares) == pytest.approx(1)


def test_drawing_needs_a_photograph(detector: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 8, 12), np.float32))
    result = run_cli("run", detector, "--input", tmp_path / "x.npy", "--draw", tmp_path / "drawn.png")
    assert result.status == 2 and "--draw needs a picture" in result.err
    assert not (tmp_path / "drawn.png").exists()


@pytest.mark.parametrize("label", [3, -1, 2**40])
@pytest.mark.parametrize("words", [(), ("--json",), ("--draw", "drawn.png")], ids=str)
def test_a_class_without_a_name(
    tmp_path: Path, photograph: Path, monkeypatch: pytest.MonkeyPatch, label: int, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs = {"boxes": BOXES, "scores": SCORES, "labels": np.array([[1, label, 0]])}
    library = whole_library(tmp_path / "detector.so", "detection", outputs)
    line = run_cli("run", library, "--input", photograph, *words).error_line()
    assert f"found objects of class {label}, and its metadata name 3 classes" in line
    assert not Path("drawn.png").exists()
