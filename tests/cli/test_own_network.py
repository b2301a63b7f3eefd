# SPDX-License-Identifier: Apache-2.0
"""`evaluate --against torch` and `bench LIB.so` of libraries from a user's own file, program, function or module."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TESTS, run_cli
from PIL import Image

import tvm_involution as ti
from tvm_involution import UserError
from tvm_involution.bench.library_subject import subject_of_library
from tvm_involution.bench.network import prepare_torch

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
resize = 36
crop = 32
mean = [120, 120, 120]
std = [60, 60, 60]
"""
PICTURES = {"mean": [120, 120, 120], "std": [60, 60, 60], "resize": 32, "crop": 32}
AGREES = "differs from torch            0 of 6 pictures"


class Net(torch.nn.Module):
    """Classes by the means of four quarters."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(num_classes)
            self.conv = torch.nn.Conv2d(3, 8, 3)
            self.fc = torch.nn.Linear(32, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        return self.fc(torch.nn.functional.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))


def with_example() -> tuple[torch.nn.Module, torch.Tensor]:
    """A module that is named with an example of its input."""
    return Net(), torch.zeros(2, 3, 32, 32)


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> Path:
    for i in range(6):
        (folder := tmp_path / "data" / "val" / f"n{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (48, 40, 3), np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "data"


def agreement(library: Path, data: Path) -> str:
    result = run_cli("evaluate", library, "--data", f"imagenet:{data}", "--against", "torch")
    assert result.status == 0, result
    return result.out


def test_a_fine_tuned_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the example's script, of a file like the zoo's: torch, the library and peers answer alike."""
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(NETWORK)
    for name, low in (("dark", 0), ("light", 128), ("mixed", 60)):
        Path("photos", name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(low, low + 127, (48, 40, 3), np.uint8)).save(Path("photos", name, f"{i}.png"))
    words = ["photos", "--model", "mine.toml", "--image-size", "32", "--epochs", "1", "--batch", "12"]
    monkeypatch.setattr("sys.argv", ["finetune.py", *words])
    runpy.run_path(str(TESTS.parent / "examples" / "finetune.py"), run_name="__main__")
    assert "of 3 pictures are right; torch answers otherwise in 0" in capsys.readouterr().out
    metadata = json.loads(run_cli("inspect", "out/finetuned.so", "--json").out)
    assert metadata["model"] == "mine.toml" and metadata["classes"] == ["dark", "light", "mixed"]
    words = ["--data", "imagenet:out/held_out", "--against", "torch"]
    assert "differs from torch            0 of 3 pictures" in run_cli("evaluate", "out/finetuned.so", *words).out

    subject = subject_of_library(Path("out/finetuned.so"), 1, peers=True)
    module, (x,) = prepare_torch(subject, [rng.standard_normal((2, 3, 32, 32), np.float32)])
    with torch.no_grad():
        expected = module(x).numpy()
    assert np.linalg.norm(ti.load("out/finetuned.so")(x.numpy()) - expected) < 1e-5 * np.linalg.norm(expected)
    Path("mine.toml").unlink()
    assert "mine.toml" in run_cli("evaluate", "out/finetuned.so", *words).error_line()


def test_functions_and_programs(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that is told the number of classes, one that has an example, and a saved program."""
    given = {"preprocessing": PICTURES, "classes": ["a", "b", "c"]}
    ti.compile(f"{__name__}:Net", num_classes=3, image_size=(32, 32), **given).save(tmp_path / "function.so")
    ti.compile(f"{__name__}:with_example", **given).save(tmp_path / "example.so")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Net(), (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "program.pt2")
    ti.compile(tmp_path / "program.pt2", batch=2, **given).save(tmp_path / "program.so")
    for name in ("function.so", "example.so", "program.so"):
        assert AGREES in agreement(tmp_path / name, data), name


def test_a_module_in_memory(tmp_path: Path, data: Path) -> None:
    """It can be given again; the command line says that it cannot know it."""
    library = tmp_path / "module.so"
    ti.compile(Net(), image_size=(32, 32), classes=["a", "b", "c"], preprocessing=PICTURES).save(library)
    right = ti.evaluate(library, f"imagenet:{data}", against=Net())
    assert (right.compared, right.disagreements) == (6, 0)
    other = Net()
    other.fc.weight.data.neg_()
    other.fc.bias.data.neg_()
    assert ti.evaluate(library, f"imagenet:{data}", against=other).disagreements == 6
    line = run_cli("evaluate", library, "--data", f"imagenet:{data}", "--against", "torch").error_line()
    assert "Net was compiled from a module in memory" in line and "leave out --against" in line
    assert "so peers cannot run it" in run_cli("bench", library, "--against", "torch").error_line()
    with pytest.raises(UserError, match="unknown peer 'tensorflow'"):
        ti.evaluate(library, f"imagenet:{data}", against="tensorflow")
