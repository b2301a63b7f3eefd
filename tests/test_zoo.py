# SPDX-License-Identifier: Apache-2.0
"""The zoo's files: complete, readable, and of one form."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from tvm_involution import UserError, zoo
from tvm_involution.nn import build_model
from tvm_involution.nn.build import BUILDERS
from tvm_involution.resources import data_dir
from tvm_involution.zoo import get_model, list_models

NAMES = [path.stem for path in data_dir("models").glob("*.toml")]

# the table of d-li14/involution's README: parameters in M, operations in G, top-1 and top-5 in percent
PUBLISHED = {
    "rednet26": (9.23, 1.73, 75.96, 93.19),
    "rednet38": (12.39, 2.22, 77.48, 93.57),
    "rednet50": (15.54, 2.71, 78.35, 94.13),
    "rednet101": (25.65, 4.74, 78.92, 94.35),
    "rednet152": (33.99, 6.79, 79.12, 94.38),
}


def test_every_file_is_listed_in_order_of_depth():
    names = [spec.name for spec in list_models()]
    assert sorted(names) == sorted(NAMES)
    assert [name for name in names if name in PUBLISHED] == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    spec = get_model(name)
    assert tuple(spec.published[key] for key in ("parameters_m", "flops_g", "top1", "top5")) == PUBLISHED[name]
    assert spec.published["source"]
    assert (spec.task, spec.image_size, spec.weights_file) == ("classification", (224, 224), None)
    assert spec.preprocessing == {
        "backend": "opencv",
        "resize": 256,
        "crop": 224,
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_model_builds_and_has_a_class_for_every_logit(name):
    spec = get_model(name)
    classes, (height, width) = spec.network["num_classes"], spec.image_size
    assert spec.builder in BUILDERS and spec.description
    assert spec.weights_file is None or spec.weights_file.is_file()
    with torch.device("meta"):
        model = build_model(spec, pretrained=False)
        outputs = model(torch.empty(2, 3, height, width))
    shapes = [tuple(x.shape) for x in (outputs if isinstance(outputs, tuple) else [outputs])]
    detections = [(2, 100, 4), (2, 100), (2, 100)]
    assert (
        shapes
        == {
            "classification": [(2, classes)],
            "semantic_segmentation": [(2, classes, height, width)],
            "detection": detections,
            "instance_segmentation": [*detections, (2, 100, height, width)],
        }[spec.task]
    )
    for values in (spec.classes, spec.class_ids, spec.colours):
        assert values is None or len(values) == len(set(values)) == classes
    assert spec.task == "classification" or spec.classes


def test_classes_of_the_data_sets():
    coco, cityscapes = get_model("faster_rcnn_rednet50"), get_model("upernet_rednet50")
    assert (coco.classes[0], coco.classes[-1], coco.class_ids[0], coco.class_ids[-1]) == ("person", "toothbrush", 1, 90)
    by_name = dict(zip(coco.classes, coco.class_ids, strict=True))
    assert (by_name["stop sign"], by_name["dining table"], by_name["refrigerator"]) == (13, 67, 82)
    assert (cityscapes.classes[0], cityscapes.colours[0]) == ("road", (128, 64, 128))
    assert (cityscapes.classes[13], cityscapes.colours[13]) == ("car", (0, 0, 142))


@pytest.mark.parametrize("name", ["rednet51", "RedNet50", "../models/rednet50", "", "yolo"])
def test_unknown_model(name):
    with pytest.raises(UserError, match="unknown model") as caught:
        get_model(name)
    message = str(caught.value)
    assert repr(name) in message and "tvm-involution models" in message and "\n" not in message


def test_close_names_are_suggested():
    with pytest.raises(UserError, match=r"did you mean .*rednet50"):
        get_model("rednet-50")


def test_reading_the_zoo_needs_no_torch():
    code = "import sys; sys.modules['torch'] = None; from tvm_involution import list_models; print(len(list_models()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(NAMES)


@pytest.mark.parametrize(
    "line, misspelt, said",
    [
        ("[published]", "[publishd]", "'publishd'"),
        ("top1 = 78.35", "topl = 78.35", "'topl'"),
        ("top1 = 78.35", 'top1 = "78.35"', "top1 must be a number"),
        ("image_size = [224, 224]", "image_size = [224]", "image_size must have 2 entries"),
        ("crop = 224", "corp = 224", "'corp'"),
        ('builder = "rednet"', 'bilder = "rednet"', "lacks a builder"),
        ('builder = "rednet"', 'builder = "redent"', "no builder 'redent'"),
        ("depth = 50", "dpeth = 50", "'dpeth'"),
        ('task = "classification"', "task = ", "cannot be read"),
    ],
)
def test_a_misspelt_file_is_refused(tmp_path, monkeypatch, line, misspelt, said):
    """A newcomer's network says which table or key is wrong; nothing is left out without a word."""
    text = (data_dir("models") / "rednet50.toml").read_text().replace('classes_file = "imagenet"\n', "")
    assert line in text
    (tmp_path / "mine.toml").write_text(text.replace(line, misspelt))
    monkeypatch.setattr(zoo, "data_dir", lambda _: tmp_path)
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        build_model("mine")
    assert "mine" in str(refused.value) and "\n" not in str(refused.value)
