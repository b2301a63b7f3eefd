# SPDX-License-Identifier: Apache-2.0
"""Programs as people save them: in half and double types, under autocast, in training mode, with sizes that vary."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.frontend.importer import core_program, import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.frontend.retype import copied

DYNAMIC = torch.export.Dim.DYNAMIC


def small() -> nn.Module:
    """Convolution, batch norm, involution, dropout and a linear layer, for any batch and image size."""
    torch.manual_seed(5)
    norm = nn.BatchNorm2d(16)
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    head = (nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), ti.nn.Involution2d(16, 3), *head).eval()


def pictures(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    return torch.from_numpy(rng.standard_normal(shape).astype("float32"))


def expected(x: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return small().double()(x.double()).numpy()


def taken(model: Any, notes: list[str] | None = None, **options: Any) -> torch.export.ExportedProgram:
    """Return the core operators that are imported of `model`."""
    network = resolve_network(model, **options)
    notes = [] if notes is None else notes
    notes += network.notes()
    program, _ = core_program(network.export(network.batch_sizes(None)[0]), notes.append)
    assert import_exported_program(program)
    return program


def run(model: Any, x: torch.Tensor, notes: list[str] | None = None) -> np.ndarray:
    """Run what is taken of `model` in torch."""
    with torch.no_grad():
        return taken(model, notes).module()(x).double().numpy()


@pytest.mark.parametrize("form", ["module", "program", "file"])
def test_double_is_taken_in_single(tmp_path, rng, form):
    x, module = pictures(rng, 2, 3, 9, 11), small().double()
    model: Any = module, x.double()
    if form != "module":
        model = torch.export.export(module, (x.double(),))
        before = str(model)
    if form == "file":
        torch.export.save(model, tmp_path / "net.pt2")
        model = tmp_path / "net.pt2"
    assert resolve_network(model).resolve_dtype(None) == "float32"
    assert relative_norm(run(model, x), expected(x)) < 1e-5
    assert next(module.parameters()).dtype == torch.float64
    if form == "program":
        assert str(model) == before and model.state_dict["0.weight"].dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_stay(tmp_path, rng, dtype):
    """A program comes one type wider, for the passes to take back."""
    x = pictures(rng, 2, 3, 9, 11)
    program = torch.export.export(small().to(dtype), (x.to(dtype),))
    for model in (program, (small().to(dtype), x.to(dtype))):
        assert resolve_network(model).resolve_dtype(None) == str(dtype).removeprefix("torch.")
        assert relative_norm(run(model, x), expected(x)) < 1e-2


class Autocast(nn.Module):
    """A region under autocast, and one inside it that is not."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.net, self.dtype = small(), dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            y = self.net[:3](x)
            with torch.autocast("cpu", enabled=False):
                y = self.net[3](y.float())
            return self.net[4:](y)


@pytest.mark.parametrize("form", ["module", "file", "around the export"])
def test_autocast_is_left_out(tmp_path, rng, form):
    x, module = pictures(rng, 2, 3, 8, 10), Autocast(torch.bfloat16).eval()
    model: Any = module, x
    if form == "file":
        torch.export.save(torch.export.export(module, (x,)), tmp_path / "net.pt2")
        model = tmp_path / "net.pt2"
    if form == "around the export":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model = torch.export.export(small(), (x,))
    notes: list[str] = []
    assert relative_norm(run(model, x, notes), expected(x)) < 1e-5
    assert [note.partition(";")[0] for note in notes] == ["the network uses autocast"]


def test_autocast_of_the_caller_is_no_matter(rng):
    notes: list[str] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        taken((small(), pictures(rng, 2, 3, 8, 10)), notes)
    assert not notes


@pytest.mark.parametrize("decomposed", [False, True])
def test_training_mode(rng, decomposed):
    """Running statistics and no dropout."""
    x, notes = pictures(rng, 2, 3, 8, 8), []
    program = torch.export.export(small().train(), (x,))
    program = program.run_decompositions({}) if decomposed else program
    assert relative_norm(run(program, x, notes), expected(x)) < 1e-5
    assert notes == [
        "the program was exported in training mode; it is compiled as for inference, as after module.eval()"
    ]


def test_norms_that_have_no_running_statistics_are_not_in_training_mode(rng):
    notes: list[str] = []
    module = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)).eval()
    taken(torch.export.export(module, (pictures(rng, 2, 3, 8, 8),)), notes)
    assert not notes


def test_no_values(tmp_path, rng):
    with torch.device("meta"):
        module = small()
    x = pictures(rng, 1, 3, 8, 8)
    torch.export.save(torch.export.export(module, (x.to("meta"),)), tmp_path / "net.pt2")
    for model in ((module, x), tmp_path / "net.pt2"):
        with pytest.raises(ti.UserError, match=r"0\.weight of .* has no values, it is on the device meta"):
            resolve_network(model)
    assert relative_norm(run((small(), x.to("meta")), x), expected(x)) < 1e-5


def test_saved_on_a_gpu(tmp_path, rng):
    """Device and weights' place are taken from the file; a library's device is that of its target."""
    x = pictures(rng, 1, 3, 8, 8)
    torch.export.save(torch.export.export(small(), (x,)), tmp_path / "cpu.pt2")
    with zipfile.ZipFile(tmp_path / "cpu.pt2") as whole, zipfile.ZipFile(tmp_path / "gpu.pt2", "w") as other:
        for name in whole.namelist():
            data = whole.read(name)
            if name.endswith(".json"):
                data = json.dumps(json.loads(data), separators=(",", ":")).encode()
                data = data.replace(b'{"type":"cpu","index":null}', b'{"type":"cuda","index":0}')
                assert b"cuda" in data or "constants" in name
            other.writestr(name, data)
    assert relative_norm(run(tmp_path / "gpu.pt2", x), expected(x)) < 1e-5


def dynamic(sizes: dict[int, Any], batch: int = 2, module: nn.Module | None = None) -> torch.export.ExportedProgram:
    return torch.export.export(module or small(), (torch.zeros(batch, 3, 8, 12),), dynamic_shapes=(sizes,))


def shape_of_input(program: torch.export.ExportedProgram) -> tuple[int, ...]:
    (name,) = program.graph_signature.user_inputs
    return next(tuple(node.meta["val"].shape) for node in program.graph.nodes if node.name == name)


def test_sizes_that_vary(tmp_path, rng):
    program = dynamic({0: DYNAMIC, 2: 4 * torch.export.Dim("rows", max=16), 3: DYNAMIC})
    torch.export.save(program, tmp_path / "net.pt2")
    network = resolve_network(tmp_path / "net.pt2", image_size=[(8, 12), (16, 9), (8, 12)])
    assert network.image_sizes == ((8, 12), (16, 9)) and network.batch_sizes(None) == (1,)
    for batch, size in ((1, (8, 12)), (3, (16, 9))):
        bound = network.export(batch, size)
        x = pictures(rng, batch, 3, *size)
        assert shape_of_input(bound) == x.shape
        with torch.no_grad():
            assert relative_norm(bound.module()(x).numpy(), expected(x)) < 1e-5
    assert network.batch_axes([1], (16, 9)).inputs == (("batch", 3, 16, 9),)
    assert not network.batch_axes([1], (16, 9)).mixed_by
    assert resolve_network(tmp_path / "net.pt2").image_sizes == ((8, 12),)
    for size, message in (((10, 12), r"takes no height of 10: .*4\*s\d+"), ((80, 12), r"height of 80: .* to 16$")):
        with pytest.raises(ti.UserError, match=message):
            resolve_network(tmp_path / "net.pt2", image_size=size).export(1)


def test_sizes_of_which_one_varies(rng):
    rows = dynamic({2: DYNAMIC})
    assert shape_of_input(resolve_network(rows, image_size=(20, 12)).export(2)) == (2, 3, 20, 12)
    with pytest.raises(ti.UserError, match="takes no width of 20, but 12"):
        resolve_network(rows, image_size=(20, 20)).export(2)
    with pytest.raises(ti.UserError, match="exported for batch 2, not 1"):
        resolve_network(rows).export(1)
    batch = dynamic({0: torch.export.Dim("batch", min=3, max=4)}, batch=3)
    assert resolve_network(batch).batch_sizes(None) == (3,)
    with pytest.raises(ti.UserError, match=r"takes no batch of 5: .* from 3 to 4$"):
        resolve_network(batch).export(5)
    with pytest.raises(ti.UserError, match="was exported with its sizes; leave out --image-size"):
        resolve_network(batch, image_size=(20, 20))
    square = torch.export.Dim("side", min=4)
    program = torch.export.export(small(), (torch.zeros(1, 3, 8, 8),), dynamic_shapes=({2: square, 3: square},))
    with pytest.raises(ti.UserError, match="takes no width of 9, but 8"):
        resolve_network(program, image_size=(8, 9)).export(1)


def test_sizes_that_nothing_names():
    with pytest.raises(ti.UserError, match=r"sizes that vary, input \(2, s\d+, 8, 12\); compiled networks have fixed"):
        resolve_network(dynamic({1: DYNAMIC}, module=nn.ReLU()))


def test_two_pictures_whose_sizes_belong_together(rng):
    class Both(nn.Module):
        def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
            return fine + torch.nn.functional.interpolate(coarse, size=fine.shape[2:])

    rows, columns = torch.export.Dim("rows", min=3), torch.export.Dim("columns", min=3)
    shapes = ({0: DYNAMIC, 2: 2 * rows, 3: 2 * columns}, {0: DYNAMIC, 2: rows, 3: columns})
    arguments = pictures(rng, 2, 4, 8, 12), pictures(rng, 2, 4, 4, 6)
    program = torch.export.export(Both(), arguments, dynamic_shapes=shapes)
    network = resolve_network(program, image_size=(6, 10))
    assert network.batch_axes([3]).inputs == (("batch", 4, 6, 10), ("batch", 4, 3, 5))


def test_copies_keep_names_and_weights(rng):
    program = torch.export.export(small(), (pictures(rng, 1, 3, 8, 8),))
    other = copied(program)
    assert [node.name for node in other.graph.nodes] == [node.name for node in program.graph.nodes]
    assert other.state_dict["0.weight"] is program.state_dict["0.weight"]
