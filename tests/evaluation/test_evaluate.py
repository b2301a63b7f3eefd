# SPDX-License-Identifier: Apache-2.0
"""`evaluate` on small data sets whose figures are known in advance."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli
from library_fixture import PIXELS, colour_library, whole_library
from PIL import Image

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.evaluation.against_torch import TorchModule
from tvm_involution.evaluation.cityscapes import Cityscapes
from tvm_involution.evaluation.coco import Coco
from tvm_involution.runtime import LibraryMetadata, load
from tvm_involution.runtime.instances import Instance
from tvm_involution.runtime.results import ClassMap, FoundObjects
from tvm_involution.zoo import get_model


def save(path: Path, colour: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), PIXELS[colour]).save(path)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_library(tmp_path_factory.mktemp("evaluate") / "colour.so", batch_sizes=(1, 4))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Eight pictures of which six are right; the classes' folders are not in the order of the logits."""
    for i, (said, shown) in enumerate(
        [*[("red", "red")] * 3, ("red", "blue"), *[("green", "green")] * 2, ("green", "red"), ("blue", "blue")]
    ):
        save(tmp_path / "data" / "val" / said / f"{i}.png", shown)
    return tmp_path / "data"


# ---------------------------------------------------------------- classes


def test_accuracy(tmp_path: Path, folders: Path, colour: Path) -> None:
    found = ti.evaluate(colour, f"imagenet:{folders}")
    assert found.figures == {"top1": 75.0, "top5": 100.0} and found.pictures == 8
    assert ti.evaluate(colour, f"imagenet:{folders}", limit=4).figures["top1"] == 75.0
    result = run_cli("evaluate", colour, "--data", f"imagenet:{folders}", "--json", tmp_path / "x.json")
    assert (result.status, result.err) == (0, "") and "top-1 accuracy" in result.out and " 75.00 %" in result.out
    assert json.loads((tmp_path / "x.json").read_text())["figures"] == found.figures


def test_a_list_of_answers(tmp_path: Path, colour: Path) -> None:
    """mmcls's: pictures in one folder; and classes by the order of their folders, where names differ."""
    for i, name in enumerate(["red", "green", "blue", "blue"]):
        save(tmp_path / "a" / "val" / f"{i}.png", name)
        save(tmp_path / "b" / f"n0{i % 3}" / f"{i}.png", name)
    (tmp_path / "a" / "meta").mkdir()
    (tmp_path / "a" / "meta" / "val.txt").write_text("0.png 0\n1.png 1\n2.png 2\n3.png 1\n")
    for folder in "ab":
        assert ti.evaluate(colour, f"imagenet:{tmp_path / folder}").figures["top1"] == 75.0


def test_the_published_figure_stands_beside(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network of the same classes: that of a fine-tuned one is another."""
    library = colour_library(tmp_path / "c.so", name="rednet50", weights_origin="x.pth")
    assert ti.evaluate(library, f"imagenet:{folders}").published == {}
    same = dataclasses.replace(get_model("rednet50"), classes=tuple(PIXELS))
    monkeypatch.setattr("tvm_involution.evaluation.counting.list_models", lambda: [same])
    assert ti.evaluate(library, f"imagenet:{folders}").published == {"top1": 78.35, "top5": 94.13}
    assert "published 78.35" in run_cli("evaluate", library, "--data", f"imagenet:{folders}").out


WEIGHT = torch.eye(3)


class Means(torch.nn.Module):
    """Classes by weighted means of the channels; the test names it as MODEL."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = WEIGHT[:, :, None, None].clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


def test_against_torch(tmp_path: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None disagrees; where torch has other weights, those are counted that do."""
    library, data = tmp_path / "means.so", f"imagenet:{folders}"
    pixels = {"mean": (0, 0, 0), "std": (50, 50, 50), "resize": 8, "crop": 8}
    name = f"{__name__}:Means"
    ti.compile(name, image_size=(8, 8), classes=["red", "green", "blue"], preprocessing=pixels).save(library)
    found = ti.evaluate(library, data, against="torch")
    assert (found.compared, found.disagreements, found.figures["top1"]) == (8, 0, 75.0)
    monkeypatch.setitem(globals(), "WEIGHT", torch.eye(3)[[1, 0, 2]])
    found = ti.evaluate(library, data, against="torch")
    assert (found.compared, found.disagreements) == (8, 6)  # all but the two blue ones
    assert ti.evaluate(library, data, against="torch", limit=3).compared == 3
    assert (
        "differs from torch            6 of 8 pictures"
        in run_cli("evaluate", library, "--data", data, "--against", "torch").out
    )


def test_the_weights_that_torch_takes(tmp_path: Path, colour: Path) -> None:
    """Of the file, and of the state dict in it, that the library was compiled with."""
    states = {key: {"conv.weight": torch.full((3, 3, 1, 1), value)} for key, value in (("model", 1.0), ("ema", 2.0))}
    torch.save(states, tmp_path / "w.pth")
    metadata = dataclasses.replace(load(colour).metadata, name=f"{__name__}:Means")
    for origin, value in (("w.pth", 1.0), ("w.pth:model", 1.0), ("w.pth:ema", 2.0)):
        peer = TorchModule(dataclasses.replace(metadata, weights_origin=str(tmp_path / origin)), 0.0)
        assert (peer._module.conv.weight == value).all()
    for origin in ("none.pth", "none.pth:ema", "a state dict"):
        with pytest.raises(UserError, match="which are not there; leave out --against"):
            TorchModule(dataclasses.replace(metadata, weights_origin=origin), 0.0)


# ---------------------------------------------------------------- objects

_NAMES = ("red", "green", "blue")


def coco_folder(folder: Path, boxes: list[list[list[float]]]) -> Path:
    """Write one 40x30 picture for each list of boxes (category, x, y, width, height)."""
    images, annotations = [], []
    for i, objects in enumerate(boxes):
        save(folder / "val2017" / f"{i}.png", "red")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "width": 40, "height": 30})
        for category, x, y, w, h in objects:
            corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            annotations.append(
                {
                    **{"id": len(annotations) + 1, "image_id": 100 + i, "category_id": category, "iscrowd": 0},
                    **{"bbox": [x, y, w, h], "area": w * h, "segmentation": corners},
                }
            )
    categories = [{"id": number, "name": name} for number, name in zip((3, 7, 9), _NAMES, strict=True)]
    (folder / "annotations").mkdir()
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return folder


def detector(path: Path, *, masks: bool, **changes: Any) -> LibraryMetadata:
    outputs: dict[str, np.ndarray] = {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.zeros((1, 2), np.float32)}
    outputs["labels"] = np.zeros((1, 2), np.int64)
    if masks:
        outputs["masks"] = np.zeros((1, 2, 8, 12), bool)
    task = "instance_segmentation" if masks else "detection"
    return load(whole_library(path, task, outputs, classes=_NAMES, **changes)).metadata


def test_what_is_found_exactly_is_all_right_and_half_of_it_half(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "d", [[[3, 4, 5, 20, 10]], [[3, 1, 2, 10, 20]]])
    metadata = detector(tmp_path / "x.so", masks=True)
    for count, expected in ((2, 100.0), (1, 50.495)):  # of 101 recalls, 51 are reached
        data = Coco(folder, metadata, None)
        for i, (x, y, w, h) in enumerate([(4, 5, 20, 10), (1, 2, 10, 20)][:count]):
            mask = np.zeros((30, 40), bool)
            mask[y : y + h, x : x + w] = True
            found = (Instance(0, 0.9, (x, y, x + w, y + h), mask),)
            data.add(i, FoundObjects(None, Image.new("RGB", (40, 30)), {}, metadata, objects=found))
        assert data.figures() == pytest.approx({"box_ap": expected, "mask_ap": expected}, abs=1e-3)


def test_as_pycocotools_called_directly(tmp_path: Path, rng: np.random.Generator) -> None:
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def boxes(count: int) -> list[list[float]]:
        corners = rng.integers(0, 20, (count, 2))
        sizes = rng.integers(4, 11, (count, 2))
        return [[int(rng.choice([3, 7, 9])), *map(int, c), *map(int, s)] for c, s in zip(corners, sizes, strict=True)]

    truths = [boxes(5) for _ in range(6)]
    folder = coco_folder(tmp_path / "d", truths)
    metadata = detector(tmp_path / "x.so", masks=False)
    data, results = Coco(folder, metadata, 4), []
    for i in range(4):
        found = []
        for category, x, y, w, h in [*truths[i], *boxes(3)]:
            x1, y1 = x + float(rng.normal()), y + float(rng.normal())
            label, score = (3, 7, 9).index(int(category)), float(rng.random())
            found.append(Instance(label, score, (x1, y1, x1 + w, y1 + h)))
            results.append({"image_id": 100 + i, "category_id": int(category), "bbox": [x1, y1, w, h], "score": score})
        data.add(i, FoundObjects(None, Image.new("RGB", (40, 30)), {}, metadata, objects=tuple(found)))
    (tmp_path / "results.json").write_text(json.dumps(results))
    truth = COCO(folder / "annotations" / "instances_val2017.json")
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.params.imgIds = [100, 101, 102, 103]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert data.figures() == {"box_ap": pytest.approx(100 * evaluation.stats[0], abs=1e-6)}
    assert 0 < evaluation.stats[0] < 1


def test_a_detector_as_a_whole(tmp_path: Path) -> None:
    """It finds one box, (8, 6) to (24, 18) of each picture: right in the first and not in the second."""
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "d", [[[7, 8, 6, 16, 12]], [[7, 0, 0, 4, 4]]])
    scale = 8 / 30
    box = np.array([[[8, 6, 24, 18], [0, 0, 0, 0]]], np.float32) * scale
    scores, labels = np.array([[0.02, 0.0]], np.float32), np.array([[1, 0]])
    library = whole_library(tmp_path / "x.so", "detection", {"boxes": box, "scores": scores, "labels": labels})
    found = ti.evaluate(library, f"coco:{folder}")
    # right up to an IoU of 0.9 at least, as the picture lies on whole pixels of the input: half of the recall
    assert 0.85 * 50.495 < found.figures["box_ap"] < 50.5 and found.pictures == 2
    assert 85 < ti.evaluate(library, f"coco:{folder}", limit=1).figures["box_ap"] <= 100


# ---------------------------------------------------------------- pixels


def test_intersection_over_union(tmp_path: Path, rng: np.random.Generator) -> None:
    """As mmseg counts: over all pixels of all pictures, ignored ones left out; absent classes do not count."""
    truths = rng.integers(0, 3, (4, 12, 16)).astype(np.uint8)
    truths[:, :2] = 255
    answers = np.where(rng.random(truths.shape) < 0.7, truths % 255, rng.integers(0, 3, truths.shape))
    folder = tmp_path / "d"
    for i, truth in enumerate(truths):
        for kind, pixels in (("leftImg8bit", np.zeros((12, 16, 3), np.uint8)), ("gtFine", truth)):
            name = "leftImg8bit" if kind == "leftImg8bit" else "gtFine_labelTrainIds"
            (path := folder / kind / "val" / "city" / f"a_{i}_{name}.png").parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    logits = np.zeros((1, 4, 8, 12), np.float32)
    classes = ("a", "b", "c", "d")
    metadata = load(
        whole_library(tmp_path / "x.so", "semantic_segmentation", {"logits": logits}, classes=classes)
    ).metadata
    data = Cityscapes(folder, metadata, None)
    for i, labels in enumerate(answers):
        data.add(i, ClassMap(None, Image.new("RGB", (16, 12)), {"logits": logits}, metadata, labels=labels))
    counted = truths != 255
    expected = [
        (counted & (truths == c) & (answers == c)).sum() / (counted & ((truths == c) | (answers == c))).sum()
        for c in range(3)
    ]
    assert data.figures()["miou"] == pytest.approx(100 * np.mean(expected))
    found = ti.evaluate(tmp_path / "x.so", f"cityscapes:{folder}", limit=2)
    share = (truths[:2][counted[:2]] == 0).mean()
    present = len(np.unique(truths[:2][counted[:2]]))
    assert found.figures["miou"] == pytest.approx(100 * share / present)


def test_cityscapes_own_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    labels = np.array([[7, 8, 11, 33, 0, 6]], np.uint8)
    for kind, name, pixels in (
        ("leftImg8bit", "leftImg8bit", np.zeros((1, 6, 3), np.uint8)),
        ("gtFine", "gtFine_labelIds", labels),
    ):
        (path := folder / kind / "val" / "city" / f"a_{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    logits = np.zeros((1, 19, 8, 12), np.float32)
    metadata = load(
        whole_library(tmp_path / "x.so", "semantic_segmentation", {"logits": logits}, classes=None)
    ).metadata
    data = Cityscapes(folder, metadata, None)
    answer = np.array([[0, 1, 2, 18, 5, 5]])
    data.add(0, ClassMap(None, Image.new("RGB", (6, 1)), {"logits": logits}, metadata, labels=answer))
    assert data.figures() == {"miou": 100.0}


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "x"), "unknown data 'x'; expected imagenet:DIR, coco:DIR, cityscapes:DIR"),
        (("--data", "imagenet:"), "unknown data 'imagenet:'"),
        (("--data", "voc:data"), "unknown data 'voc:data'"),
        (("--data", "coco:data"), "coco is for detection or instance_segmentation, and small is for classification"),
        (("--data", "imagenet:none"), "none is no folder; expected a folder for each class"),
        (("--data", "imagenet:empty"), "empty has folders of 0 classes, and small 3"),
        (("--data", "imagenet:list"), "line 2 of list/meta/val.txt is 'b.png 3'"),
        (("--data", "imagenet:data", "--limit", "0"), "--limit"),
        (("--data", "imagenet:damaged"), "is no picture that can be read"),
        (("--data", "imagenet:data", "--json", "none/x.json"), "cannot write none/x.json"),
        (("--data", "imagenet:data", "--against", "torch"), "leave out --against"),
    ],
)
def test_wrong_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, colour: Path, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    for name in _NAMES:
        save(Path("data") / name / "a.png", name)
        save(Path("damaged") / name / "a.png", name)
    Path("damaged/red/a.png").write_bytes(b"no")
    Path("empty").mkdir()
    Path("list/meta").mkdir(parents=True)
    Path("list/meta/val.txt").write_text("a.png 2\nb.png 3\n")
    before = sorted(Path().rglob("*"))
    assert message in run_cli("evaluate", colour, *words).error_line()
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"images": 3}', '{"images": [], "categories": [], "annotations": []}']
)
def test_what_are_no_annotations(tmp_path: Path, content: str) -> None:
    pytest.importorskip("pycocotools")
    metadata = detector(tmp_path / "x.so", masks=False)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(content)
    with pytest.raises(UserError, match=r"holds no annotations|has no pictures") as caught:
        Coco(tmp_path, metadata, None)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        Coco(tmp_path / "none", metadata, None)


def test_classes_that_the_data_has_not(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    folder = coco_folder(tmp_path / "d", [[]])
    (tmp_path / "y").mkdir()
    outputs = {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.zeros((1, 2), np.float32)}
    outputs["labels"] = np.zeros((1, 2), np.int64)
    library = whole_library(tmp_path / "x.so", "detection", outputs, classes=("cat", "dog"))
    with pytest.raises(UserError, match=r"has classes that .* has not"):
        Coco(folder, load(library).metadata, None)
