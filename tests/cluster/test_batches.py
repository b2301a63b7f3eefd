# SPDX-License-Identifier: Apache-2.0
"""`tvm_involution.ray.Predictor` on batches as Ray Data has them; Ray itself is not needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from library_fixture import colour_library, whole_library
from PIL import Image

from tvm_involution import UserError
from tvm_involution.ray import Predictor

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0)}


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("batches") / "colour.so", batch_sizes=(1, 4))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    for name, pixel in COLOURS.items():
        Image.new("RGB", (40, 30), pixel).save(tmp_path / f"{name}.png")
    return [str(tmp_path / f"{name}.png") for name in COLOURS]


def column(*entries: Any) -> np.ndarray:
    array = np.empty(len(entries), object)
    array[:] = entries
    return array


@pytest.mark.parametrize("kind", ["path", "item", "bytes", "image"])
def test_pictures_of_every_kind(colour: Path, files: list[str], kind: str) -> None:
    pictures = {
        **dict.fromkeys(("path", "item"), column(*files)),
        "bytes": column(*(Path(file).read_bytes() for file in files)),
        "image": np.stack([np.asarray(Image.open(file)) for file in files]),
    }[kind]
    answers = Predictor(str(colour), top_k=2)({"id": np.array([7, 8]), kind: pictures})
    assert answers["id"].tolist() == [7, 8] and (kind in answers) == (kind in ("path", "item"))
    assert answers["name_1"].tolist() == ["red", "green"] and answers["class_1"].tolist() == [0, 1]
    assert (answers["probability_1"] > 0.9).all() and answers["probability_2"].dtype == np.float64
    assert answers["error"].tolist() == ["", ""] and "name_3" not in answers


def test_what_cannot_be_read_stops_no_other(colour: Path, files: list[str]) -> None:
    answers = Predictor(str(colour))({"path": column(files[0], "none.png")})
    assert answers["name_1"].tolist() == ["red", ""] and answers["class_1"].tolist() == [0, -1]
    assert answers["class_1"].dtype == np.int64 and np.isnan(answers["probability_1"][1])
    assert answers["error"][0] == "" and "none.png does not exist" in answers["error"][1]
    answers = Predictor(str(colour))({"bytes": column(b"no picture")})
    assert "a picture in memory is no picture that can be read" in answers["error"][0]


def test_objects_are_lists(files: list[str], tmp_path: Path) -> None:
    outputs = {"boxes": np.array([[[0, 0, 4, 4], [1, 1, 3, 3]]], np.float32), "labels": np.array([[1, 0]])}
    outputs["scores"] = np.array([[0.9, 0.8]], np.float32)
    library = whole_library(tmp_path / "detector.so", "detection", outputs)
    answers = Predictor(str(library))({"path": column(*files, "none.png")})
    assert answers["name"].tolist() == [["green", "red"]] * 2 + [[]] and len(answers["x1"][0]) == 2
    answers = Predictor(str(library), score_threshold=0.85)({"path": column(*files)})
    assert [entry for entry in answers["name"]] == [["green"]] * 2


def test_outputs_of_other_networks(files: list[str], tmp_path: Path) -> None:
    library = colour_library(tmp_path / "unknown.so", task="unknown", classes=None)
    answers = Predictor(str(library))({"path": column(*files, "none.png")})
    assert answers["logits"][0].shape == (3,) and answers["logits"][2] is None


def test_columns_that_hold_no_pictures(colour: Path) -> None:
    with pytest.raises(UserError, match="a batch has the columns id; expected bytes or image or path or item"):
        Predictor(str(colour))({"id": np.array([1])})
    with pytest.raises(UserError, match="a batch has the columns path; expected file"):
        Predictor(str(colour), column="file")({"path": column("a.png")})
