# SPDX-License-Identifier: Apache-2.0
"""Batches whose first layers run picture by picture."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_rednet
from reference import relative_norm
from torch import nn
from tvm import relax

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes import picture_by_picture
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import extract_tasks

TARGET = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": %d}'


@pytest.fixture(autouse=True)
def caches_of_a_kilobyte(monkeypatch):
    monkeypatch.setattr(picture_by_picture, "CACHE_BYTES", 1 << 10)


class MixedPictures(nn.Module):
    """A batch's mean between convolutions: what follows needs all pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)

    def forward(self, x):
        y = self.first(x).relu()
        return self.second(y - y.mean(0, keepdim=True)).relu()


def picture_function(module: nn.Module, batch: int, target: str) -> tuple[relax.Function | None, int]:
    """Return the function of one picture, and how often the network calls it."""
    mod = import_exported_program(export_module(module.eval(), [torch.zeros(batch, 3, 20, 18)]))
    mod = pipeline.run(mod, resolve_target(target), until="lower operators")
    functions = {var.name_hint: func for var, func in mod.functions_items() if isinstance(func, relax.Function)}
    calls = str(functions["main"]).count("main_picture(")
    return functions.get("main_picture"), calls


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results(tmp_path, rng, dtype):
    module = tiny_rednet()
    ti.compile(module, image_size=(40, 33), batch=(1, 3), dtype=dtype).save(tmp_path / "net.so")
    x = torch.from_numpy(rng.standard_normal((3, 3, 40, 33))).to(getattr(torch, dtype))
    with torch.no_grad():
        expected = module.double()(x.double())
    actual = ti.load(tmp_path / "net.so")(x)
    assert relative_norm(actual.double().numpy(), expected.numpy()) < (1e-5 if dtype == "float32" else 1e-2)


def test_the_first_layers_are_apart():
    picture, calls = picture_function(tiny_rednet(), 3, TARGET % 2)
    assert calls == 3
    assert [int(d) for d in picture.params[0].ty.shape.values] == [1, 3, 20, 18]
    whole = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 20, 18)]))
    assert str(picture).count("call_tir") < str(whole).count("R.nn.") / 2


@pytest.mark.parametrize(("batch", "cores"), [(1, 2), (3, 64)])
def test_one_picture_and_many_cores_go_without(batch, cores):
    assert picture_function(tiny_rednet(), batch, TARGET % cores) == (None, 0)


def test_what_mixes_pictures_stays_together(tmp_path, rng):
    module = MixedPictures().eval()
    picture, calls = picture_function(module, 3, TARGET % 2)
    assert calls == 3 and "mean" not in str(picture)
    ti.compile((module, torch.zeros(3, 3, 20, 18))).save(tmp_path / "net.so")
    x = rng.standard_normal((3, 3, 20, 18)).astype("float32")
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x).double()).numpy()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5


def test_tuning_counts_every_call():
    network = resolve_network(tiny_rednet(), image_size=(32, 32))
    target = resolve_target(TARGET % 2)
    calls = {batch: sum(task.calls for task in extract_tasks(network, target, batch=batch)) for batch in (1, 3)}
    assert calls[1] * 2 < calls[3] <= calls[1] * 3 + 4
