# SPDX-License-Identifier: Apache-2.0
"""A `.pt2` file is read without running anything from it; what would run something is refused."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli

from tvm_involution import UserError
from tvm_involution.frontend.exported_program import load_program
from tvm_involution.frontend.network import resolve_network

PROGRAM = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


class Nested(torch.nn.Module):
    """Names with a hyphen, a branch, `no_grad`, nested inputs and outputs: what the vetting has to let through."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict({"a-b": torch.nn.Linear(4, 4)})
        self.register_buffer("scale", torch.arange(4.0))

    def forward(self, x: torch.Tensor, *, pair: list[torch.Tensor]) -> dict[str, Any]:
        with torch.no_grad():
            z = self.layers["a-b"](x)
        z = torch.cond(z.sum() > 0, lambda z: z + 1, lambda z: z - 1, (z,))
        return {"u": z * self.scale + torch.tensor([1.0, 2, 3, 4]), "v": (pair[0].split(2, 1)[0], x.size(0))}


class Sized(torch.nn.Module):
    """Sizes that are expressions of the input's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(x, size=(x.shape[2] * 2, x.shape[3] + 1)).flatten(1)[:, : x.shape[0]]


def save(path: Path, module: torch.nn.Module, *arguments: Any, **options: Any) -> Path:
    torch.export.save(torch.export.export(module.eval(), arguments, **options), path)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of a convolution and a batch norm."""
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return save(tmp_path_factory.mktemp("archive") / "whole.pt2", layers, torch.zeros(1, 3, 8, 8))


def changed(whole: Path, path: Path, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Write the archive `whole` to `path` with other contents, or further members."""
    with zipfile.ZipFile(whole) as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()} | changes
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"whole/{name}", data)
    return path


def edited(whole: Path, path: Path, name: str, edit: Callable[[Any], object]) -> Path:
    """Write the archive with a table of JSON edited."""
    with zipfile.ZipFile(whole) as archive:
        data = json.loads(archive.read(f"whole/{name}"))
    edit(data)
    return changed(whole, path, {name: json.dumps(data).encode()})


class RunsCode:
    """What a pickle may do: here it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        resolve_network(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("case", ["nested", "symbolic"])
def test_programs_come_through(tmp_path: Path, rng: np.random.Generator, case: str) -> None:
    if case == "symbolic":
        module, arguments, keywords = Sized(), (torch.randn(2, 3, 5, 6),), {}
        sizes = {0: torch.export.Dim("batch", max=8), 2: torch.export.Dim("height", min=3, max=99)}
        save(tmp_path / "x.pt2", module, *arguments, dynamic_shapes=(sizes,))
    else:
        module, arguments, keywords = Nested(), (torch.randn(2, 4),), {"pair": [torch.randn(2, 4), torch.ones(1)]}
        save(tmp_path / "x.pt2", module, *arguments, kwargs=keywords)
    found = torch.utils._pytree.tree_leaves(load_program(tmp_path / "x.pt2").module()(*arguments, **keywords))
    expected = torch.utils._pytree.tree_leaves(module(*arguments, **keywords))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", [SAMPLES, "data/weights/model.pt", "data/constants/model.pt"])
def test_pickles_are_not_run(tmp_path: Path, whole: Path, name: str) -> None:
    path = changed(whole, tmp_path / "evil.pt2", {name: saved((RunsCode(tmp_path / "ran"),))})
    assert "could run code" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_run(tmp_path: Path, whole: Path) -> None:
    def pickle_first(table: Any) -> None:
        next(iter(table["config"].values()))["use_pickle"] = True

    path = edited(whole, tmp_path / "table.pt2", WEIGHTS, pickle_first)
    # weights that the weights-only unpickler reads are fine
    fine = changed(
        path, tmp_path / "fine.pt2", {"data/weights/weight_0": saved(torch.nn.Parameter(torch.ones(4, 3, 3, 3)))}
    )
    assert load_program(fine).state_dict["0.weight"].sum() == 108
    evil = changed(path, tmp_path / "evil.pt2", {"data/weights/weight_0": saved(RunsCode(tmp_path / "ran"))})
    assert "could run code" in refusal(evil)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["custom_obj_0", "opaque_obj_0"])
def test_objects_are_not_read(tmp_path: Path, whole: Path, file: str) -> None:
    table = {"config": {"x": {"path_name": file, "is_param": False, "use_pickle": True, "tensor_meta": None}}}
    changes = {
        CONSTANTS: json.dumps(table).encode(),
        f"data/constants/{file}": pickle.dumps(RunsCode(tmp_path / "ran")),
    }
    assert "could run code" in refusal(changed(whole, tmp_path / "evil.pt2", changes))
    assert not (tmp_path / "ran").exists()


def _first_node(program: Any) -> Any:
    return program["graph_module"]["graph"]["nodes"][0]


_CODE = "__import__('os').mkdir('ran')"
_EDITS: dict[str, Callable[[Any], object]] = {
    "function": lambda p: _first_node(p).update(target="torch.os.system"),
    "loads a library": lambda p: _first_node(p).update(target="torch.ops.load_library"),
    "method of a loader": lambda p: _first_node(p).update(target="torch.ops.load_library.__call__"),
    "calls anything": lambda p: _first_node(p).update(target="_operator.methodcaller"),
    "other module": lambda p: _first_node(p).update(target="_operatorx.call"),
    "opens files": lambda p: _first_node(p).update(target="torch.ops.aten.from_file.default"),
    "keyword": lambda p: _first_node(p)["inputs"][0].update(name=f"x={_CODE}"),
    "result": lambda p: _first_node(p)["outputs"][0]["as_tensor"].update(name=f"x={_CODE}"),
    "input": lambda p: p["graph_module"]["graph"]["inputs"][-1]["as_tensor"].update(name=f"x={_CODE}"),
    "parameter": lambda p: p["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
        parameter_name=f'x").{_CODE}#'
    ),
    "size": lambda p: next(iter(p["graph_module"]["graph"]["tensor_values"].values())).update(
        sizes=[{"as_expr": {"expr_str": _CODE, "hint": None}}]
    ),
    # a tensor that is called like a part of the format
    "size under another name": lambda p: p["graph_module"]["graph"]["tensor_values"].update(
        metadata={"sizes": [{"as_expr": {"expr_str": _CODE, "hint": None}}]}
    ),
    "container": lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "collections.defaultdict", "context": {"default_factory_module": "antigravity", '
        '"default_factory_name": "geohash", "dict_context": []}, "children_spec": []}]'
    ),
    "enumeration": lambda p: p["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec='[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": \\"antigravity:x\\"}]", '
        '"children_spec": []}]'
    ),
    "object": lambda p: _first_node(p)["inputs"][0].update(arg={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
}


@pytest.mark.parametrize("edit", _EDITS)
def test_programs_that_would_run_code(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, edit: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert "could run code" in refusal(edited(whole, tmp_path / "evil.pt2", PROGRAM, _EDITS[edit]))
    assert not Path("ran").exists()


def test_guards_are_dropped(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = edited(whole, tmp_path / "x.pt2", PROGRAM, lambda program: program.update(guards_code=[_CODE]))
    load_program(path).module()(torch.zeros(1, 3, 8, 8))
    assert not Path("ran").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_archives(tmp_path: Path, whole: Path) -> None:
    evil = tmp_path / "evil.pt2"
    assert "compiled code" in refusal(changed(whole, evil, {"data/aotinductor/model/x.so": b"\x7fELF"}))
    assert "compressed" in refusal(changed(whole, evil, {}, zipfile.ZIP_DEFLATED))
    assert "do not lie in one folder" in refusal(changed(whole, evil, {"../../x": b""}))
    shutil.copy(whole, evil)
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr("whole/data/weights/weight_0", b"")
    assert "more than one way" in refusal(evil)
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("whole/readme", b"hello")
    assert "no program called `model`" in refusal(evil)
    with zipfile.ZipFile(evil, "w") as archive:
        archive.writestr("serialized_exported_program.json", b"{}")
    assert "older" in refusal(evil)
    with zipfile.ZipFile(evil, "w"):
        pass
    assert "no program" in refusal(evil)


def test_damage_is_seen(tmp_path: Path, whole: Path, rng: np.random.Generator) -> None:
    """A flipped bit of a member does not survive its CRC; one of the table of members leads nowhere."""
    data = whole.read_bytes()
    expected = load_program(whole).state_dict
    silent = 0
    for position in rng.integers(0, len(data), 40):
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "x.pt2").write_bytes(flipped)
        try:
            found = load_program(tmp_path / "x.pt2").state_dict
        except UserError:
            continue
        silent += 1  # in the padding between the members, a date, or the name of the folder
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert silent < 40
    (tmp_path / "x.pt2").write_bytes(data[: len(data) // 2])
    assert "truncated" in refusal(tmp_path / "x.pt2")


def test_what_torch_says_of_damage_is_raised_alone(
    tmp_path: Path, whole: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/version")}
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    refusal(tmp_path / "x.pt2")
    assert capfd.readouterr().err == "" and not caplog.records


@pytest.mark.parametrize("before, behind", [(b"#!/bin/sh\n", b""), (b"", b"comment")], ids=["before", "comment"])
def test_something_before_or_behind(tmp_path: Path, whole: Path, before: bytes, behind: bytes) -> None:
    data = whole.read_bytes()
    assert data.endswith(bytes(2))  # the length of the comment
    (tmp_path / "x.pt2").write_bytes(before + data[:-2] + struct.pack("<H", len(behind)) + behind)
    assert "more than one way" in refusal(tmp_path / "x.pt2")


def test_a_bomb(tmp_path: Path, whole: Path) -> None:
    """A member that says it is larger than the whole file."""
    data = bytearray(whole.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "x.pt2").write_bytes(data)
    assert "larger than itself" in refusal(tmp_path / "x.pt2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.onnx", "is an ONNX file"),
        ("x.pth", "give weights as --checkpoint"),
        ("x.ckpt", "give weights as --checkpoint"),
        ("x.safetensors", "name the network and give the file as --checkpoint"),
        ("x.so", "is compiled already"),
        ("x.txt", "is no MODEL"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"something")
    assert message in refusal(Path(name))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_torch_wrote_otherwise(tmp_path: Path) -> None:
    """Weights, pickled modules and TorchScript, whatever they are called, are named, and not unpickled."""
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt2")
    torch.save({"w": torch.ones(2)}, tmp_path / "weights.pt2", _use_new_zipfile_serialization=False)
    (tmp_path / "raw.pt2").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran")))
    for name in ("module.pt2", "weights.pt2", "raw.pt2"):
        assert "is a file of torch.save" in refusal(tmp_path / name)
    scripted = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    for name in ("script.pt2", "script.pt"):
        torch.jit.save(scripted, tmp_path / name)
        assert "is a TorchScript file" in refusal(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    assert "does not exist" in refusal(tmp_path / "none.pt2")


def test_sizes_that_nothing_names_are_refused(tmp_path: Path) -> None:
    shapes = {"input": {axis: torch.export.Dim(f"size{axis}", min=2, max=64) for axis in (0, 1)}}
    path = save(tmp_path / "varies.pt2", torch.nn.ReLU(), torch.zeros(2, 3, 8, 8), dynamic_shapes=shapes)
    for words in (["compile", path, "--output", tmp_path / "varies.so"], ["bench", path], ["tune", path]):
        ended = run_cli(*words)
        assert ended.status == 2
        assert "varies.pt2 was exported with sizes that vary, input (" in ended.err.splitlines()[-1]
        assert "Traceback" not in ended.err
