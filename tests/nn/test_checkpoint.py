# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load, and files that must not."""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import enum
import json
import os
import pickle
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import official
import pytest
import torch
from safetensors.torch import save_file

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.nn import ImageClassifier, RedNet, build_model, load_checkpoint
from tvm_involution.nn.checkpoint_file import read_checkpoint


def make_model() -> ImageClassifier:
    return ImageClassifier(RedNet(stage_blocks=(1, 1, 1, 1), stem_channels=32, base_channels=16), 10)


@pytest.fixture
def state(rng) -> dict[str, torch.Tensor]:
    """Random values for every tensor of `make_model()`."""
    return {
        name: torch.rand(t.shape) if t.is_floating_point() else torch.tensor(9)
        for name, t in make_model().state_dict().items()
    }


def assert_loaded(model: torch.nn.Module, state: dict[str, torch.Tensor], but: str = "-") -> None:
    own = model.state_dict()
    assert set(own) == set(state)
    for name, tensor in state.items():
        assert torch.equal(own[name], tensor) != (but in name), name


def refuse(file: Path, model: torch.nn.Module | None = None) -> str:
    """Return the one line with which `file` is refused; the model must be as before, and nothing else be said."""
    model = make_model() if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as said, pytest.raises(UserError) as caught:
        warnings.simplefilter("always")
        load_checkpoint(model, file)
    assert not said
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    message = str(caught.value)
    assert str(file) in message and "\n" not in message and len(message) < 900, message
    return message


@pytest.mark.parametrize("depth", [26, 50])
def test_official_file(tmp_path, depth, rng):
    content = official.checkpoint(depth)
    torch.save(content, tmp_path / "rednet.pth")
    model = build_model(f"rednet{depth}")
    load_checkpoint(model, tmp_path / "rednet.pth")
    assert_loaded(model, content["state_dict"])


def test_official_file_from_before_torch_1_6(tmp_path, state):
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    load_checkpoint(model := make_model(), tmp_path / "a.pth")
    assert_loaded(model, state)


def test_numpy_scalars_in_meta(tmp_path, state):
    meta = {"seed": np.int64(3), "hook_msgs": {"best_score": np.float64(78.35), "lr": np.float32(0.1)}}
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "a.pth")
    load_checkpoint(model := make_model(), str(tmp_path / "a.pth"))
    assert_loaded(model, state)


def test_numpy_scalars_of_the_other_numpy(tmp_path, state):
    """NumPy 1 pickles scalars under numpy.core, NumPy 2 under numpy._core; files of both must load."""
    torch.save({"meta": {"seed": np.int64(3)}, "state_dict": state}, tmp_path / "a.pth")
    names = [b"cnumpy.core.multiarray\nscalar\n", b"cnumpy._core.multiarray\nscalar\n"]
    swapped = 0
    with zipfile.ZipFile(tmp_path / "a.pth") as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for item in source.infolist():
            content = source.read(item)
            own, other = names if names[0] in content else reversed(names)
            swapped += content.count(own) if item.filename.endswith("data.pkl") else 0
            target.writestr(
                item.filename, content.replace(own, other) if item.filename.endswith("data.pkl") else content
            )
    assert swapped
    load_checkpoint(model := make_model(), tmp_path / "b.pth")
    assert_loaded(model, state)


def test_bare_state_dict_of_data_parallel_without_counters(tmp_path, state):
    bare = {f"module.{name}": tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save(bare, tmp_path / "a.pt")
    load_checkpoint(model := make_model(), tmp_path / "a.pt")
    assert_loaded(model, state, but="num_batches_tracked")


def test_safetensors(tmp_path, state):
    save_file(state, tmp_path / "a.safetensors")
    load_checkpoint(model := make_model(), tmp_path / "a.safetensors")
    assert_loaded(model, state)


def test_half_precision_file_fills_a_float32_model(tmp_path, state):
    torch.save({name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "a.pth")
    load_checkpoint(model := make_model(), tmp_path / "a.pth")
    assert model.head.fc.weight.dtype == torch.float32
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"].half().float())


def test_backbone_alone(tmp_path, state):
    backbone = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    torch.save({"state_dict": backbone}, tmp_path / "a.pth")
    model = make_model()
    head = model.head.fc.weight.clone()
    load_checkpoint(model, tmp_path / "a.pth")
    assert_loaded(model.backbone, backbone)
    assert torch.equal(model.head.fc.weight, head)


def test_another_depth(tmp_path):
    torch.save(official.checkpoint(50), file := tmp_path / "rednet50.pth")
    message = refuse(file, build_model("rednet38"))
    assert "surplus 100: backbone.layer1.2.conv1.weight" in message and "and 96 more" in message
    assert "missing" not in message
    near = message.partition("nearest to backbone.layer1.2.conv1.weight in the network: ")[2].split(", ")
    assert len(near) == 5 and "backbone.layer1.1.conv1.weight" in near


def test_missing_surplus_and_wrong_shapes_are_named(tmp_path, state):
    del state["backbone.layer1.0.conv2.conv2.conv.bias"]
    state["head.extra"] = torch.zeros(1)
    state["head.fc.weight"] = torch.zeros(1000, 512)
    torch.save(state, file := tmp_path / "a.pth")
    message = refuse(file)
    assert "missing 1: backbone.layer1.0.conv2.conv2.conv.bias" in message
    assert "surplus 1: head.extra" in message
    assert "wrong shape 1: head.fc.weight [1000, 512] instead of [10, 512]" in message


def test_missing_file_and_folder(tmp_path):
    assert "is no file" in refuse(tmp_path / "absent.pth")
    assert "is no file" in refuse(tmp_path)


@pytest.mark.parametrize("share", [0, 0.0001, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated(tmp_path, state, kind, share):
    file = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pth")
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "truncated" in refuse(file)


def test_damaged_anywhere(tmp_path, rng):
    """Whatever bytes are damaged, the file is refused in one line or read; nothing else comes out."""
    torch.save(make_model().state_dict(), whole := tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    content, file = whole.read_bytes(), tmp_path / "b.pth"
    for _ in range(75):
        damaged = bytearray(content[:60_000])
        for place in rng.integers(0, 20_000, 20):
            damaged[place] = rng.integers(0, 256)
        file.write_bytes(damaged)
        refuse(file)


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html></html>", b"hello world, this is text\n", bytes(5000)])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_other_files(tmp_path, content, suffix):
    (file := tmp_path / f"a{suffix}").write_bytes(content)
    refuse(file)


@pytest.mark.parametrize("content", [[1, 2], {}, {"state_dict": {"a": 1}}, {"epoch": 3}, torch.zeros(3)], ids=str)
def test_no_state_dict(tmp_path, content):
    torch.save(content, file := tmp_path / "a.pth")
    assert "holds no state dict" in refuse(file)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), file := tmp_path / "a.pt")
    assert "weights_only" not in refuse(file)


class Touch:
    """Pickles as a call that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize("place", ["meta", "state_dict", "value", "bare pickle"])
def test_code_in_a_file_is_not_run(tmp_path, state, place, old):
    """Beside the weights it is passed over; in their place the file is refused, with the function's name."""
    evil, file = Touch(tmp_path / "ran"), tmp_path / "a.pth"
    if place == "bare pickle":
        file.write_bytes(pickle.dumps(evil, protocol=2 if old else 5))
    else:
        inside = {"value": {"state_dict": state | {"head.fc.bias": evil}}}.get(place, {place: evil})
        torch.save({"meta": {}, "state_dict": state} | inside, file, _use_new_zipfile_serialization=not old)
    if place == "meta":
        load_checkpoint(model := make_model(), file)
        assert_loaded(model, state)
    else:
        message = refuse(file)
        assert place == "bare pickle" or "posix.system" in message
    assert not (tmp_path / "ran").exists()


_ARGUMENT = b"(S'touch ran'\n"
# programs, in the opcodes that make or change objects; whether Python's own unpickler would run os.system
_PROGRAMS = {
    "inst": (_ARGUMENT + b"ios\nsystem\n.", True),
    "obj": (b"(cos\nsystem\n" + _ARGUMENT[1:] + b"o.", True),
    "reduce": (b"cos\nsystem\n" + _ARGUMENT + b"tR.", True),
    "eval": (b'c__builtin__\neval\n(S\'__import__("os").system("touch ran")\'\ntR.', True),
    "stack global": (b"S'os'\nS'system'\n\x93" + _ARGUMENT + b"tR.", True),
    "nested": (b"ctorch._utils\n_rebuild_parameter\n(cos\nsystem\n" + _ARGUMENT + b"tRI0\nNtR.", True),
    "of type": (b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNS'touch ran'\n\x85NtR.", True),
    "newobj": (b"cos\nsystem\n" + _ARGUMENT + b"t\x81.", False),
    "newobj_ex": (b"cos\nsystem\n" + _ARGUMENT + b"t}\x92.", False),
    "appends": (b"cos\nsystem\n(S'touch ran'\ne.", False),
    "set items": (b"cos\nsystem\n(S'touch ran'\nNu.", False),
    "build": (b"ccollections\nOrderedDict\n(tR(S'__setstate__'\ncos\nsystem\nd\x94b.", False),
    "extension": (b"\x82\x01" + _ARGUMENT + b"tR.", False),
}


@pytest.mark.parametrize("name", _PROGRAMS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_malicious_pickles_run_nothing(tmp_path, monkeypatch, name, old):
    """Each is the whole of the file's pickle."""
    monkeypatch.chdir(tmp_path)
    (program, runs), file = _PROGRAMS[name], tmp_path / "a.pth"
    if old:
        head = [pickle.dumps(x, protocol=2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        file.write_bytes(b"".join([*head, program, pickle.dumps([], protocol=2)]))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", program)
    refuse(file)
    assert not Path("ran").exists()
    with contextlib.suppress(Exception):
        pickle.loads(program)
    assert Path("ran").exists() == runs


def test_a_whole_pickled_model_is_refused_by_its_class(tmp_path):
    torch.save(make_model(), file := tmp_path / "a.pth")
    assert "ImageClassifier" in (message := refuse(file)) and "save its state dict" in message
    torch.save({"model": make_model(), "epoch": 3}, file)
    assert "ImageClassifier" in refuse(file)


def test_tensors_stay_within_their_storages(tmp_path, state):
    """A pickle that says of a tensor that it is larger than the storage that the file has for it."""
    torch.save(state, whole := tmp_path / "a.pth")
    size, larger = b"K\x0aM\x00\x02\x86", b"K\x0bM\x00\x02\x86"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "b.pth", "w") as target:
        for item in source.infolist():
            content = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert content.count(size) == 1
                content = content.replace(size, larger)
            target.writestr(item.filename, content)
    refuse(tmp_path / "b.pth")


# ---------------------------------------------------------------- what trainers write


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("container", ["state_dict", "model", "model_state_dict", "ema_state_dict", "state_dict_ema"])
def test_wrappers_and_containers(tmp_path, state, prefix, container):
    torch.save({container: {prefix + name: t for name, t in state.items()}, "epoch": 3}, tmp_path / "a.PTH")
    model = make_model()
    assert load_checkpoint(model, tmp_path / "a.PTH") == ()
    assert_loaded(model, state)


def test_a_part_that_torch_compiled(state):
    compiled = {name.replace("backbone.", "backbone._orig_mod."): tensor for name, tensor in state.items()}
    load_checkpoint(model := make_model(), compiled)
    assert_loaded(model, state)


def test_a_network_whose_own_names_begin_like_a_wrapper(state):
    model = torch.nn.Sequential()
    model.add_module("model", make_model())
    load_checkpoint(model, {f"model.{name}": tensor for name, tensor in state.items()})
    assert_loaded(model.model, state)
    load_checkpoint(model, {f"module.model.{name}": tensor + 1 for name, tensor in state.items()})
    assert_loaded(model.model, {name: tensor + 1 for name, tensor in state.items()})


def test_what_trainers_keep_outside_of_the_network_is_left_out(state):
    """An averaged model's counter, without a word; a loss of Lightning's module by name."""
    averaged = {"n_averaged": torch.tensor(3), **{f"module.{name}": tensor for name, tensor in state.items()}}
    model = make_model()
    assert load_checkpoint(model, averaged) == ()
    assert_loaded(model, state)
    lightning = {**{f"model.{name}": tensor for name, tensor in state.items()}, "criterion.weight": torch.ones(10)}
    (note,) = load_checkpoint(model := make_model(), {"state_dict": lightning})
    assert "criterion.weight" in note and "model." in note
    assert_loaded(model, state)


def test_one_of_several_state_dicts(tmp_path, state):
    other = {name: tensor + 1 for name, tensor in state.items()}
    averaged = {"steps": torch.tensor(7), **{f"module.{name}": tensor for name, tensor in other.items()}}
    torch.save({"ema_state_dict": averaged, "state_dict": state, "mine": other}, file := tmp_path / "a.pth")
    (note,) = load_checkpoint(model := make_model(), file)
    assert_loaded(model, state)
    assert "state_dict was taken; there are also ema_state_dict, mine" in note
    for key in ("ema_state_dict", "mine"):
        (note,) = load_checkpoint(model := make_model(), file, key=key)
        assert_loaded(model, other)
        assert f"{key} was taken" in note
    with pytest.raises(UserError, match="has no state dict 'ema'; it has state_dict, ema_state_dict, mine"):
        load_checkpoint(model, file, key="ema")


def test_average_buffers_of_emahook_and_a_preprocessor(state):
    buffers = {f"ema_{name.replace('.', '_')}": t + 1 for name, t in state.items() if "running" not in name}
    pixels = {"data_preprocessor.mean": torch.tensor([1.0, 2, 3]).view(3, 1, 1), "data_preprocessor.std": torch.ones(3)}
    notes = load_checkpoint(model := make_model(), state | buffers | pixels)
    assert_loaded(model, state)
    assert len(notes) == 1 and "EMAHook" in notes[0]
    checkpoint = read_checkpoint({"state_dict": {f"module.{name}": t for name, t in (state | pixels).items()}})
    assert (checkpoint.mean, checkpoint.std) == ((1, 2, 3), (1, 1, 1))
    load_checkpoint(model := make_model(), checkpoint)
    assert_loaded(model, state)


class HistoryBuffer:
    """As mmengine's in a message hub: of a module that the reader has not."""

    def __init__(self) -> None:
        self.values = np.arange(5.0)


class ConfigDict(dict):
    """As mmengine's: a mapping of a class of its own, with attributes."""


class Kind(enum.Enum):
    """As in a configuration."""

    FINE = 1


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
def test_objects_of_other_classes_are_passed_over(tmp_path, state, old, protocol):
    config = ConfigDict(lr=0.1)
    config.extra = ConfigDict(a=[1])
    deep: list = []
    for _ in range(3000):
        deep = [deep]
    content = {
        "state_dict": collections.OrderedDict(state),
        "meta": {
            **{"cfg": config, "when": datetime.datetime(2024, 1, 2), "where": Path("/a"), "kind": {Kind.FINE: 1}},
            **{"args": argparse.Namespace(x=1), "counts": collections.Counter("aab"), "set": {1, frozenset("a")}},
            **{
                "ranges": (range(3), slice(1), complex(1, 2), bytearray(b"x"), b"y"),
                "random": np.random.RandomState(1),
            },
            **{"default": collections.defaultdict(list, a=[1]), "arrays": [np.zeros(3), np.array(["a"], object)]},
            "dataset_meta": ConfigDict(classes=("cat", "dog"), palette=[[1, 2, 3], [4, 5, 6]]),
        },
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}, "times": np.datetime64("2024-01-02")},
        "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": np.float64(0.1)}]},
        "rng": torch.get_rng_state(),
        "dtype": (torch.float16, torch.device("cpu"), torch.Size([1]), torch.strided),
    }
    recursion = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    content["deep"] = deep if not old else []
    torch.save(content, file := tmp_path / "a.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    sys.setrecursionlimit(recursion)
    checkpoint = read_checkpoint(file)
    load_checkpoint(model := make_model(), checkpoint)
    assert_loaded(model, state)
    assert checkpoint.classes == ("cat", "dog") and checkpoint.colours == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(
    "meta", [{"CLASSES": ["cat", "dog"]}, {"dataset_meta": {"CLASSES": ("cat", "dog")}}, {"classes": ["cat", "dog"]}]
)
def test_names_of_classes(state, meta):
    assert read_checkpoint({"state_dict": state, "meta": meta}).classes == ("cat", "dog")


@pytest.mark.parametrize("bad", [[], "cat", [1, 2], ["a\x1b[31m"], [""], None, 3, {"a": 1}], ids=str)
def test_what_are_no_names_of_classes(state, bad):
    for meta in ({"CLASSES": bad}, {"dataset_meta": bad}, bad):
        assert read_checkpoint({"state_dict": state, "meta": meta}).classes is None


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float64])
def test_every_floating_type(tmp_path, state, dtype):
    held = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    held["head.fc.weight"] = torch.nn.Parameter(held["head.fc.weight"].t().contiguous().t())
    held["head.fc.weight"].tag = "an attribute"
    torch.save(held, tmp_path / "a.pth")
    load_checkpoint(model := make_model(), tmp_path / "a.pth")
    assert_loaded(model, {name: tensor.to(state[name].dtype) for name, tensor in held.items()})


def save_shards(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    """Write `state` to two safetensors files and their index, as huggingface_hub does."""
    names = list(state)
    shards = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, held in shards.items():
        save_file({name: state[name] for name in held}, folder / shard)
    table = {name: shard for shard, held in shards.items() for name in held}
    (index := folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
    return index


def test_shards(tmp_path, state):
    load_checkpoint(model := make_model(), save_shards(tmp_path, state))
    assert_loaded(model, state)


@pytest.mark.parametrize(
    "what", ["{", "[]", "{}", '{"weight_map": {"a": "../x.safetensors"}}', '{"weight_map": {"a": 1}}']
)
def test_what_is_no_index(tmp_path, what):
    (file := tmp_path / "model.safetensors.index.json").write_text(what)
    assert "is no index of safetensors files" in refuse(file)


def test_shards_that_are_not_all_there(tmp_path, state):
    index = save_shards(tmp_path, state)
    second = tmp_path / "model-00002-of-00002.safetensors"
    save_file({"a": torch.zeros(1)}, second)
    assert "lacks it" in refuse(index)
    second.unlink()
    assert "names model-00002-of-00002.safetensors, which is not beside it" in refuse(index)


def test_the_nearest_names_are_told(tmp_path, state):
    torch.save({name.replace("head.fc", "cls_head.fc_1"): t for name, t in state.items()}, file := tmp_path / "a.pth")
    message = refuse(file)
    near = message.partition("nearest to head.fc.weight in the file: ")[2].split(", ")
    assert near[0] == "cls_head.fc_1.weight" and len(near) == 2


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_no_flipped_bit_changes_a_weight_without_a_word(tmp_path, state, rng, kind):
    """Of a zip archive. Safetensors has no sums: of its bits only those of the header can be told."""
    file = tmp_path / ("a.pth" if kind == "zip" else "a.safetensors")
    torch.save(state, file) if kind == "zip" else save_file(state, file)
    whole = file.read_bytes()
    limit = len(whole) if kind == "zip" else 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for place in rng.integers(0, limit, 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        model = make_model()
        try:
            load_checkpoint(model, file)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            # spaces of the header, and what the archive has between its entries, mean nothing
            assert_loaded(model, state)
    assert refused > 30


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_are_not_finite_are_named(tmp_path, state, bad, suffix):
    """1e300 is a number in float64, and infinite in the model."""
    state["head.fc.bias"] = state["head.fc.bias"].double()
    state["head.fc.bias"][3] = bad
    file = tmp_path / f"a{suffix}"
    torch.save(state, file) if suffix == ".pth" else save_file(state, file)
    assert "not finite 1: head.fc.bias" in refuse(file)


@pytest.mark.filterwarnings("ignore")  # torch announces that quantized tensors will go
@pytest.mark.parametrize(
    ("what", "convert"),
    [
        ("int64", lambda t: t.long()),
        ("bool", lambda t: t > 0.5),
        ("complex64", lambda t: torch.complex(t, t)),
        ("sparse_coo", lambda t: t.to_sparse()),
        ("sparse_csr", lambda t: t.to_sparse_csr()),
        ("qint8", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        ("on meta", lambda t: t.to("meta")),
    ],
)
def test_what_is_no_plain_tensor_of_floats_is_named(tmp_path, state, what, convert):
    state["head.fc.weight"] = convert(state["head.fc.weight"])
    torch.save({"state_dict": state}, file := tmp_path / "a.pth")
    assert f"wrong kind 1: head.fc.weight is {what}" in refuse(file)
    model = make_model()
    with pytest.raises(UserError, match=f"the state dict cannot .* head.fc.weight is {what}"):
        load_checkpoint(model, state)


def test_counters_of_a_halved_state_dict(state):
    load_checkpoint(model := make_model(), {name: tensor.half() for name, tensor in state.items()})
    assert torch.equal(model.head.fc.weight, state["head.fc.weight"].half().float())


def test_a_state_dict_itself(state):
    for given in (state, {"state_dict": state}, {f"module.{name}": tensor for name, tensor in state.items()}):
        load_checkpoint(model := make_model(), given)
        assert_loaded(model, state)
    negative = {name: torch.complex(-t, -t).conj().imag if t.dim() else t for name, t in state.items()}
    assert negative["head.fc.weight"].is_neg()
    load_checkpoint(model := make_model(), negative)
    assert_loaded(model, state)


@pytest.mark.parametrize("given", [None, 3, [1], {}, {1: torch.zeros(1)}, {"a": 1}, {"state_dict": {}}], ids=str)
def test_what_is_no_checkpoint(given):
    with pytest.raises(UserError, match=r"source must be a string or a path or a Mapping|holds no state dict"):
        load_checkpoint(make_model(), given)
    with pytest.raises(UserError, match="model must be a Module, got"):
        load_checkpoint({}, given)


def test_compile_takes_a_state_dict(tmp_path, rng):
    class Scale(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    library = ti.compile((Scale(), torch.zeros(1, 4)), checkpoint={"scale": torch.full((4,), 3.0)})
    assert library.metadata.weights_origin == "a state dict"
    library.save(tmp_path / "scale.so")
    x = rng.standard_normal((1, 4), np.float32)
    np.testing.assert_array_equal(ti.load(tmp_path / "scale.so")(x), 3 * x)
