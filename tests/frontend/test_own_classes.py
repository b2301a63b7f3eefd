# SPDX-License-Identifier: Apache-2.0
"""Networks with the user's own classes, pictures and zoo files, up to where they are compiled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tvm_involution import UserError
from tvm_involution.frontend.network import resolve_network
from tvm_involution.frontend.user_data import read_classes, read_preprocessing
from tvm_involution.nn import build_model
from tvm_involution.nn.build import _build, count_classes, with_classes
from tvm_involution.runtime.metadata import RANDOM_WEIGHTS, TensorSpec
from tvm_involution.zoo import get_model, list_models

NETWORK = """
task = "classification"
classes = ["cat", "dog", "emu"]
[network]
builder = "rednet"
stage_blocks = [1, 1, 1, 1]
stem_channels = 32
base_channels = 16
num_classes = 3
[input]
image_size = [32, 32]
[preprocessing]
resize = 40
crop = 32
mean = [1, 2, 3]
std = [4, 5, 6]
"""


@pytest.fixture
def zoo_file(tmp_path: Path) -> Path:
    (path := tmp_path / "mine.toml").write_text(NETWORK)
    return path


@pytest.mark.parametrize("spec", list_models(), ids=lambda spec: spec.name)
def test_the_head_tells_how_many_classes(spec):
    """Of every network of the zoo, whose heads have a class of background, boxes of each class, or anchors."""
    for count in (1, 7, 1000):
        with torch.device("meta"):
            state = _build(with_classes(spec, count)).state_dict()
        assert count_classes(spec, {f"module.{entry}": tensor for entry, tensor in state.items()}) == count
    assert count_classes(spec, {"a": torch.zeros(3)}) is None


def test_a_fine_tuned_checkpoint(tmp_path, zoo_file):
    spec = with_classes(get_model("rednet_photos"), 4)
    state = build_model(spec, seed=3).state_dict()
    meta = {"dataset_meta": {"classes": ("a", "b", "c", "d"), "palette": [[1, 2, 3]] * 4}}
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "a.pth")
    network = resolve_network("rednet_photos", checkpoint=tmp_path / "a.pth")
    assert network.classes == ("a", "b", "c", "d") and network.num_classes == 4
    assert torch.equal(network.module.state_dict()["head.fc.weight"], state["head.fc.weight"])
    assert network.weights_origin == str(tmp_path / "a.pth") and not network.notes()
    # the user's word counts more than the checkpoint's, and that more than the zoo's
    named = resolve_network("rednet_photos", checkpoint=tmp_path / "a.pth", classes=list("wxyz"))
    assert named.classes == tuple("wxyz")
    with pytest.raises(UserError, match="has 4 classes, and 3 are named"):
        resolve_network("rednet_photos", checkpoint=tmp_path / "a.pth", classes=list("wxy"))
    with pytest.raises(UserError, match=r"wrong shape 2: head.fc.weight \[4, 512\] instead of \[5, 512\]"):
        resolve_network("rednet_photos", checkpoint=tmp_path / "a.pth", num_classes=5)
    meta["dataset_meta"]["classes"] = ("a", "b")
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "a.pth")
    network = resolve_network("rednet_photos", checkpoint=tmp_path / "a.pth")
    assert network.classes is None and "names 2 classes, of 4" in network.notes()[0]


def test_imagenet_and_coco_keep_their_names():
    network = resolve_network("rednet26")
    assert len(network.classes) == 1000 and network.classes[0] == "tench" and network.weights_origin == RANDOM_WEIGHTS
    assert resolve_network("rednet26", num_classes=10).classes is None
    shipped = resolve_network("rednet_photos", num_classes=10)
    assert shipped.classes[0] == "astronaut" and shipped.weights_origin.startswith("models/")
    assert resolve_network("rednet_photos", num_classes=9).weights_origin == RANDOM_WEIGHTS


def test_the_zoos_numbers_of_classes_stay_where_a_checkpoint_names_the_same():
    names = tuple(name.replace(" ", "_") for name in get_model("retinanet_rednet50").classes)
    content = {"state_dict": build_model("retinanet_rednet50").state_dict(), "meta": {"CLASSES": names}}
    network = resolve_network("retinanet_rednet50", checkpoint=content)
    assert network.class_ids is not None and network.classes[9] == "traffic light"


def test_pixels_of_a_checkpoint():
    state = build_model("rednet_photos").state_dict()
    pixels = {"data_preprocessor.mean": torch.tensor([1.0, 2, 3]), "data_preprocessor.std": torch.tensor([4.0, 5, 6])}
    network = resolve_network("rednet_photos", checkpoint=state | pixels)
    assert (network.preprocessing.mean, network.preprocessing.std) == ((1, 2, 3), (4, 5, 6))
    assert network.preprocessing.resize == 96 and "data_preprocessor" in network.notes()[0]
    own = {"mean": (7, 8, 9), "std": (1, 1, 1), "resize": 96, "crop": 96}
    network = resolve_network("rednet_photos", checkpoint=state | pixels, preprocessing=own)
    assert network.preprocessing.mean == (7, 8, 9) and not network.notes()


def test_a_backbone_alone_leaves_the_head_random():
    state = build_model("rednet_photos").backbone.state_dict()
    network = resolve_network("rednet_photos", checkpoint=state)
    assert network.weights_origin.endswith(RANDOM_WEIGHTS) and "backbone alone" in network.notes()[0]


def test_a_zoo_file_of_the_users(tmp_path, zoo_file):
    network = resolve_network(str(zoo_file))
    assert (network.name, network.classes, network.image_sizes) == ("mine", ("cat", "dog", "emu"), ((32, 32),))
    assert network.preprocessing.mean == (1, 2, 3) and network.weights_origin == RANDOM_WEIGHTS
    torch.save(network.module.state_dict(), tmp_path / "w.pth")
    zoo_file.write_text(NETWORK + '[weights]\nfile = "w.pth"\n')
    assert resolve_network(zoo_file).weights_origin == "models/w.pth"
    (tmp_path / "names.toml").write_text('names = ["x", "y", "z"]')
    zoo_file.write_text(NETWORK.replace('classes = ["cat", "dog", "emu"]', 'classes_file = "names.toml"'))
    assert resolve_network(zoo_file).classes == ("x", "y", "z")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('builder = "rednet"', "", "lacks a builder"),
        ('"rednet"', '"bluenet"', "no builder 'bluenet', expected one of rednet"),
        ("base_channels", "basis", "does not take these arguments"),
        ("[preprocessing]", "[preprocesing]", "has a foreign field 'preprocesing'"),
        ("mean = [1, 2, 3]", "mean = [1, 2]", "must have 3 entries"),
        ("classification", "classifying", "unknown task 'classifying'"),
        ("image_size = [32, 32]", "image_size = [0, 32]", "image_size must be"),
        ("[network]", "[network", "expected a TOML file"),
        ('classes = ["cat", "dog", "emu"]', 'classes_file = "none.toml"', "none.toml cannot be read"),
        ('"emu"]', '"emu", "yak"]', "mine.toml: 3 classes, and names of 4"),
    ],
)
def test_zoo_files_that_cannot_be_read(zoo_file, old, new, message):
    assert old in NETWORK
    zoo_file.write_text(NETWORK.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        resolve_network(zoo_file)
    assert "\n" not in str(caught.value) and ".toml" in str(caught.value)


def test_files_of_names(tmp_path):
    (file := tmp_path / "names.txt").write_text("\ufeffcat\n dog \nfür immer\n\n", encoding="utf-8")
    assert read_classes(file).names == ("cat", "dog", "für immer")
    (tmp_path / "names.toml").write_text('names = ["a", "b"]\nids = [3, 7]\ncolours = [[1, 2, 3], [4, 5, 6]]')
    classes = read_classes(tmp_path / "names.toml")
    assert (classes.ids, classes.colours) == ((3, 7), ((1, 2, 3), (4, 5, 6)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "must have the classes' names"),
        ("a.txt", b"cat\n\ndog\n", "line 2 of .* is empty"),
        ("a.txt", b"\xff\xfe", "cannot be read"),
        ("a.txt", b"cat\n\x1b[31m\n", "must be a string"),
        ("a.toml", b"names = []", "there must be names"),
        ("a.toml", b'names = ["a"]\nids = [1, 2]', "as many ids"),
        ("a.toml", b'names = ["a"]\ncolours = [[1, 2, 300]]', "between 0 and 255"),
        ("a.toml", b"names = 3", "must be a list"),
        ("a.toml", b"[", "expected a TOML file"),
        ("none.txt", None, "cannot be read: No such file"),
    ],
)
def test_what_are_no_names(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_classes(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_preprocessing_files(tmp_path):
    table = "mean = [1, 2, 3]\nstd = [4, 5, 6]\nresize = 40\ncrop = 32\n"
    (file := tmp_path / "pixels.toml").write_text(table)
    bare = read_preprocessing(file)
    file.write_text("[preprocessing]\n" + table)
    assert read_preprocessing(file) == bare == read_preprocessing(vars(bare))
    assert (bare.resize, bare.crop, bare.mean, bare.std, bare.backend) == (40, 32, (1, 2, 3), (4, 5, 6), "pillow")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (1, 2)}, "must have 3 entries"),
        ({"std": (0, 1, 1)}, "positive deviation"),
        ({"std": None}, "must be a list"),
        ({"resize": 20}, "must crop something"),
        ({"crop": None}, "both resize and crop"),
        ({"backend": "imagemagick"}, "a backend of pillow or opencv"),
        ({"size": 3}, "foreign field 'size'"),
        ({"mean": (1, 2, float("nan"))}, "must be a number"),
    ],
)
def test_what_prepares_no_picture(change, message):
    with pytest.raises(UserError, match=message):
        read_preprocessing({"mean": (1, 2, 3), "std": (4, 5, 6), "resize": 40, "crop": 32} | change)


@pytest.mark.parametrize(
    ("shapes", "task"),
    [
        ([("batch", 2)], "classification"),
        ([("batch", 2, 8, 8)], "semantic_segmentation"),
        ([("batch", 3)], None),
        ([("batch", 2), ("batch", 2)], None),
        ([(2, "batch")], None),
        ([("batch", 2, 8)], None),
    ],
)
def test_what_a_network_with_named_classes_does(shapes, task):
    network = resolve_network(torch.nn.Conv2d(3, 2, 1), classes=["cat", "dog"])
    outputs = [TensorSpec(f"y{i}", shape, "float32") for i, shape in enumerate(shapes)]
    if task is None:
        with pytest.raises(UserError, match="2 classes are named, and Conv2d answers with"):
            network.tell_task(outputs)
    else:
        network.tell_task(outputs)
        assert (network.task, network.output_names) == (task, ("logits",))


def test_names_of_a_checkpoint_stop_no_network():
    """Of a network whose outputs are something else, the user has not said that they are classes."""
    state = {name: tensor for name, tensor in torch.nn.Conv2d(3, 2, 1).state_dict().items()}
    content = {"state_dict": state, "meta": {"CLASSES": ["cat", "dog", "emu"]}}
    network = resolve_network(torch.nn.Conv2d(3, 2, 1), checkpoint=content)
    assert network.classes == ("cat", "dog", "emu")
    network.tell_task([TensorSpec("y", ("batch", 2, 8, 8), "float32")])
    assert network.classes is None and network.task == "unknown"
