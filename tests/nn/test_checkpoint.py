# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load, and files that must not."""

from __future__ import annotations

import os
import pickle
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
    assert "missing" not in message and "depth" in message


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
    for _ in range(150):
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


@pytest.mark.parametrize("place", ["meta", "state_dict", "bare pickle", "old pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, state, place):
    evil, file = Touch(tmp_path / "ran"), tmp_path / "a.pth"
    if place == "bare pickle":
        file.write_bytes(pickle.dumps(evil))
    elif place == "old pickle":
        file.write_bytes(pickle.dumps(evil, protocol=2))
    else:
        torch.save({"meta": {}, "state_dict": state} | {place: evil}, file)
    message = refuse(file)
    assert not (tmp_path / "ran").exists()
    assert "refused" in message or place == "bare pickle"


def test_a_whole_pickled_model_is_refused_by_its_class(tmp_path):
    torch.save(make_model(), file := tmp_path / "a.pth")
    assert "ImageClassifier" in (message := refuse(file)) and "state dict alone" in message


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
