# SPDX-License-Identifier: Apache-2.0
"""`ti.Predictor`: from pictures of any kind to named answers that draw themselves."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from library_fixture import affine_library, colour_library, whole_library
from PIL import Image

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.runtime.find_pictures import find_pictures
from tvm_involution.runtime.predictor import Failure
from tvm_involution.runtime.preprocessing import read_picture

CHANNELS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("predictor") / "colour.so", batch_sizes=(1, 4))


def save(path: Path, colour: str) -> Path:
    Image.new("RGB", (40, 30), CHANNELS[colour]).save(path)
    return path


def test_everything_that_is_a_picture(tmp_path: Path, colour: Path) -> None:
    predict = ti.Predictor(colour)
    file = save(tmp_path / "a.png", "green")
    picture = Image.open(file)
    expected = predict(file)
    assert expected.source == str(file) and [c.name for c in expected.classes] == ["green", "blue", "red"]
    assert expected.probabilities.sum() == pytest.approx(1) and expected.classes[0].label == 1
    grey = np.full((30, 40), 9, np.uint8)
    for given in (str(file), picture, np.asarray(picture), picture.convert("RGBA")):
        answer = predict(given)
        assert answer.classes[0].name == "green"
        np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
    (tmp_path / "b").mkdir()
    save(tmp_path / "b" / "x10.png", "red")
    save(tmp_path / "b" / "x9.jpg", "blue")
    answers = predict([picture, tmp_path / "b", np.dstack([grey] * 3), str(tmp_path / "b" / "x1*.png")])
    assert [a.classes[0].name for a in answers][:3] == ["green", "blue", "red"] and len(answers) == 5
    assert [os.path.basename(a.source) for a in predict(tmp_path / "b")] == ["x9.jpg", "x10.png"]
    np.testing.assert_array_equal(predict(grey).probabilities, answers[3].probabilities)
    assert predict([]) == []


def test_many_in_batches_are_as_one_by_one(rng: np.random.Generator, colour: Path) -> None:
    pictures = [rng.integers(0, 256, (*rng.integers(20, 60, 2), 3), dtype=np.uint8) for _ in range(23)]
    predict = ti.Predictor(ti.load(colour), top_k=1)
    answers = predict(pictures)
    for answer, picture in zip(answers, pictures, strict=True):
        np.testing.assert_allclose(answer.outputs["logits"], predict(picture).outputs["logits"], rtol=1e-5, atol=1e-6)
        assert len(answer.classes) == 1 and answer.picture.size == picture.shape[1::-1]


def test_a_picture_that_cannot_be_read_stops_no_other(tmp_path: Path, colour: Path) -> None:
    files = [save(tmp_path / f"{i}.png", "red") for i in range(7)]
    files[2].write_bytes(files[2].read_bytes()[:60])
    files[5].unlink()
    predict = ti.Predictor(colour)
    answers = list(predict.stream(files))
    assert [isinstance(answer, Failure) for answer in answers] == [i in (2, 5) for i in range(7)]
    with pytest.raises(UserError, match=r"2\.png is no picture"):
        predict([files[0], files[2]])


def test_the_stream_reads_no_further_than_it_must(colour: Path) -> None:
    """And ends its threads when nobody wants more."""
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((8, 12, 3), np.uint8)

    before = threading.active_count()
    stream = ti.Predictor(colour).stream(endless())
    for _ in range(9):
        next(stream)
    stream.close()
    assert taken <= 9 + 2 * 4 + 4 + 16 and threading.active_count() <= before + 1


def test_objects(tmp_path: Path) -> None:
    boxes = np.array([[[0, 0, 4, 4], [1, 2, 5, 6], [0, 0, 0, 0]]], np.float32)
    masks = np.zeros((1, 3, 8, 12), bool)
    masks[0, 0, :4] = masks[0, 1, 2:6, 1:5] = True
    scores, labels = np.array([[0.9, 0.4, 0.0]], np.float32), np.array([[1, 0, 0]])
    outputs = {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}
    library = whole_library(tmp_path / "d.so", "instance_segmentation", outputs, class_ids=(7, 9, 90))
    answer = ti.Predictor(library)(Image.new("RGB", (24, 32), (200, 200, 200)))
    assert answer.classes == ("green", "red") and answer.masks.shape == (2, 32, 24)
    np.testing.assert_array_equal(answer.boxes, [[0, 0, 16, 16], [4, 8, 20, 24]])
    np.testing.assert_allclose(answer.scores, [0.9, 0.4])
    assert [o["category_id"] for o in answer.to_json()["objects"]] == [9, 7]
    assert (np.asarray(answer.draw()) != 200).any()
    assert ti.Predictor(library, score_threshold=0.95)(answer.picture).boxes.shape == (0, 4)


def test_a_map_of_classes(tmp_path: Path) -> None:
    logits = np.zeros((1, 3, 8, 12), np.float32)
    logits[0, 2, :, :3] = logits[0, 1, :, 3:] = 1
    library = whole_library(tmp_path / "s.so", "semantic_segmentation", {"logits": logits})
    answer = ti.Predictor(library)(Image.new("RGB", (24, 32)))
    assert answer.labels.shape == (32, 24) and answer.shares.tolist() == [0, 0.5, 0.5]
    assert [row["name"] for row in answer.rows()] == ["green", "blue"] and answer.draw().size == (24, 32)


def test_a_classification_draws_its_names(tmp_path: Path, colour: Path) -> None:
    picture = Image.new("RGB", (200, 100), (0, 250, 0))
    drawn = np.asarray(ti.Predictor(colour)(picture).draw())
    assert (drawn[:40, :40] != (0, 250, 0)).any() and (drawn[99, 199] == (0, 250, 0)).all()
    assert np.asarray(picture)[0, 0].tolist() == [0, 250, 0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 12, 3), np.float32), r"must be uint8 \(H, W, 3\), .* got float32"),
        (np.zeros((3, 8, 12), np.uint8), r"got uint8 \[3, 8, 12\]"),
        (np.zeros((0, 12, 3), np.uint8), "got uint8"),
        (7, "must be a file or its bytes, a PIL picture or an array, got int"),
        (None, "got NoneType"),
        ("none.png", "none.png does not exist"),
        ("no*.png", r"no file fits no\*.png"),
        (["none.png"], "none.png does not exist"),
    ],
    ids=str,
)
def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: Path, given, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        ti.Predictor(colour)(given)


def test_what_is_no_predictor(tmp_path: Path, colour: Path) -> None:
    with pytest.raises(UserError, match="does not say how to prepare a picture; compile it with --preprocessing"):
        ti.Predictor(affine_library(tmp_path / "affine.so"))
    mixing = colour_library(tmp_path / "mixing.so", batch_sizes=(4,), mixed_by="a norm")
    with pytest.raises(UserError, match="mixes the pictures of a batch; compile it for batch 1"):
        ti.Predictor(mixing)
    for wrong in ({"batch": 0}, {"top_k": 0}, {"batch": "x"}, {"score_threshold": "y"}):
        with pytest.raises(UserError, match="must be"):
            ti.Predictor(colour, **wrong)


def test_folders(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.PNG", "a.jpg", ".hidden.png", ".git/x.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [os.path.relpath(path, tmp_path) for path in find_pictures([tmp_path])]
    assert names == ["a.jpg", "b/2.png", "b/10.PNG"]
    assert find_pictures([tmp_path, tmp_path / "a.jpg", str(tmp_path / "**" / "*.png")]) == find_pictures([tmp_path])
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match="c has no pictures in it"):
        find_pictures([tmp_path / "c"])
    (tmp_path / "[1].png").touch()
    assert find_pictures([tmp_path / "[1].png"]) == [str(tmp_path / "[1].png")]


def test_pictures_are_read_in_threads_without_a_word(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Standard error and Python's filters of warnings are as they were after many threads have read TIFFs."""
    save(tmp_path / "a.png", "red")
    for i in range(4):
        Image.new("RGB", (40, 30)).save(tmp_path / f"{i}.tif")
    filters = list(warnings.filters)

    def read() -> None:
        for i in range(12):
            read_picture(tmp_path / f"{i % 4}.tif")

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n" and warnings.filters == filters
