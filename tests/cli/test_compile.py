# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution compile`: what it writes, what it says, and how it stops."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TESTS, default_signals, run_cli
from PIL import Image

import tvm_involution as ti
from tvm_involution.runtime.library_file import read_metadata


def small_network() -> torch.nn.Module:
    """Return a network that compiles in a second; `cli.test_compile:small_network` on the command line."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 4, 1))


MODEL = "cli.test_compile:small_network"


def test_compile_and_run(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "small.so"
    result = run_cli("compile", MODEL, "--batch", "3,1", "--image-size", "6x10", "-o", path)
    assert (result.status, result.err) == (0, "")
    for part in (str(path), MODEL, "import from PyTorch", "generate code", "weights", "kernels: 0 from tuning records"):
        assert part in result.out, part
    metadata = read_metadata(path)
    assert metadata.batch_sizes == (1, 3) and metadata.inputs[0].shape == ("batch", 3, 6, 10)
    x = rng.standard_normal((4, 3, 6, 10), np.float32)
    with torch.no_grad():
        expected = small_network().double()(torch.from_numpy(x).double()).numpy()
    np.testing.assert_allclose(ti.load(path)(x), expected, rtol=1e-4, atol=1e-5)
    assert [file.name for file in tmp_path.iterdir()] == ["small.so"]


class SelfWeighted(torch.nn.Module):
    """Windows times themselves, which is no involution; `cli.test_compile:SelfWeighted` on the command line."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 1)

    def forward(self, x):
        taken = torch.nn.functional.unfold(self.first(x), 3, padding=1).view(1, 4, 9, 6, 10)
        return (taken * taken).sum(2)


def test_a_product_with_windows_that_is_no_involution_is_named_by_its_line(tmp_path: Path) -> None:
    result = run_cli("compile", "cli.test_compile:SelfWeighted", "--image-size", "6x10", "-o", tmp_path / "own.so")
    assert (result.status, result.err) == (0, "")
    (note,) = (line for line in result.out.splitlines() if line.split()[:1] == ["note"])
    lines, first = inspect.getsourcelines(SelfWeighted.forward)
    number = first + next(i for i, line in enumerate(lines) if "taken * taken" in line)
    assert f"test_compile.py:{number}" in note


def test_checkpoint_and_dump(tmp_path: Path) -> None:
    torch.save({"state_dict": {k: v + 1 for k, v in small_network().state_dict().items()}}, tmp_path / "weights.pth")
    result = run_cli(
        *("compile", MODEL, "--image-size", "6x6", "-o", tmp_path / "small.so"),
        *("--checkpoint", tmp_path / "weights.pth", "--debug-dump", tmp_path / "dump"),
    )
    assert result.status == 0, result.err
    assert str(tmp_path / "weights.pth") in result.out
    assert len(list((tmp_path / "dump").glob("[0-9]-*.py"))) > 3
    network = small_network()
    network.load_state_dict({k: v + 1 for k, v in network.state_dict().items()})
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(ti.load(tmp_path / "small.so")(x), network(x).detach(), rtol=1e-4, atol=1e-4)


class Means(torch.nn.Module):
    """Two classes, red and blue, by the channels' means; `cli.test_compile:Means` on the command line."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1, 3, 1, 1))
        self.num_classes = num_classes

    def forward(self, x):
        return (x * self.scale).mean((2, 3))[:, :: 3 - self.num_classes + 1][:, : self.num_classes]


def test_own_classes_and_pictures(tmp_path: Path) -> None:
    """Of a function and of a .pt2 file alike; what an answer says of weights that nobody trained is for the zoo's."""
    (tmp_path / "names.txt").write_text("red\nblue\n")
    (tmp_path / "pixels.toml").write_text("mean = [0, 0, 0]\nstd = [10, 10, 10]\nresize = 8\ncrop = 8\n")
    Image.new("RGB", (20, 30), (20, 90, 70)).save(tmp_path / "x.png")
    program = torch.export.export(Means().eval(), (torch.zeros(1, 3, 8, 8),))
    torch.export.save(program, tmp_path / "means.pt2")
    library, words = tmp_path / "x.so", ("--classes", tmp_path / "names.txt")
    for model in (("cli.test_compile:Means", "--image-size", "8x8"), (tmp_path / "means.pt2",)):
        result = run_cli("compile", *model, *words, "--preprocessing", tmp_path / "pixels.toml", "-o", library)
        assert (result.status, result.err) == (0, "")
        answer = run_cli("run", library, "--input", tmp_path / "x.png")
        assert [line.split()[:2] for line in answer.out.splitlines()] == [["blue", "99.33%"], ["red", "0.67%"]]
    (tmp_path / "names.txt").write_text("red\ngreen\nblue\n")
    refused = run_cli("compile", "cli.test_compile:Means", *words, "-o", tmp_path / "y.so")
    assert refused.status == 2 and refused.err.count("\n") == 1 and not (tmp_path / "y.so").exists()
    assert "3 classes are named, and cli.test_compile:Means answers with (batch, 2)" in refused.err
    many = run_cli("compile", "cli.test_compile:Means", "--num-classes", 3, *words, "-o", library)
    assert (many.status, many.err) == (0, "")
    assert read_metadata(library).outputs[0].shape == ("batch", 3)


def test_random_weights_are_told(tmp_path: Path) -> None:
    """When a library of the user's own zoo file is compiled, and whenever it is run."""
    (tmp_path / "mine.toml").write_text(
        'task = "classification"\nclasses = ["a", "b"]\n[network]\nbuilder = "rednet"\nstage_blocks = [1]\n'
        "strides = [1]\ndilations = [1]\nout_indices = [0]\nbase_channels = 16\nnum_classes = 2\n"
        "[input]\nimage_size = [16, 16]\n"
    )
    result = run_cli("compile", tmp_path / "mine.toml", "-o", tmp_path / "x.so")
    assert result.status == 0 and "warning: the weights of mine are random" in result.err
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 16, 16), np.float32))
    again = run_cli("run", tmp_path / "x.so", "--input", tmp_path / "x.npy")
    assert again.status == 0 and again.err == result.err and again.err.count("\n") == 1


def test_one_of_several_state_dicts_of_a_checkpoint(tmp_path: Path) -> None:
    own = small_network().state_dict()
    torch.save({"model": own, "ema_state_dict": {f"module.{k}": v + 1 for k, v in own.items()}}, tmp_path / "w.pth")
    words = ("compile", MODEL, "--image-size", "6x6", "-o", tmp_path / "x.so", "--checkpoint", tmp_path / "w.pth")
    result = run_cli(*words, "--checkpoint-key", "ema_state_dict")
    assert result.status == 0, result.err
    assert "ema_state_dict was taken; there are also model" in result.out
    assert read_metadata(tmp_path / "x.so").weights_origin == f"{tmp_path / 'w.pth'}:ema_state_dict"
    network = small_network()
    network.load_state_dict({k: v + 1 for k, v in own.items()})
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(ti.load(tmp_path / "x.so")(x), network(x).detach(), rtol=1e-4, atol=1e-4)
    assert "has no state dict 'ema'" in run_cli(*words, "--checkpoint-key", "ema").error_line()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([MODEL, "--checkpoint-key", "ema"], "--checkpoint-key names a part of a checkpoint"),
        ([MODEL, "--num-classes", "7"], "cannot be called with num_classes"),
        ([MODEL, "--classes", "none.txt"], "classes file none.txt cannot be read"),
        ([MODEL, "--preprocessing", "none.toml"], "none.toml cannot be read"),
        (["none.toml"], "none.toml cannot be read"),
        (["none.pt2", "--num-classes", "7"], "leave out --checkpoint and --num-classes"),
        (["rednet5O"], "unknown model 'rednet5O': did you mean rednet50"),
        (["none.pt2"], "none.pt2 does not exist"),
        (["no.such.module:build"], "cannot import no.such.module:build"),
        (["cli.test_compile:nothing"], "cannot import cli.test_compile:nothing"),
        (["cli.test_compile:MODEL"], "cli.test_compile:MODEL is a str; expected a function that returns a module"),
        (["builtins:dict"], "builtins:dict returned dict; expected a torch.nn.Module"),
        ([":build"], "cannot import :build"),
        ([MODEL, "--target", "nvidia/nvidia-h1000"], "unknown target 'nvidia/nvidia-h1000'"),
        ([MODEL, "--target", '{"kind": "llvm", "mcpu"'], "unknown target"),
        ([MODEL, "--target", '{"kind": "llvm", "mtriple": "garbage"}'], "libraries cannot be linked for 'garbage'"),
        ([MODEL, "--target", '{"kind": "llvm", "mcpu": "znver9"}'], "LLVM knows no CPU 'znver9'"),
        (["os:system"], "os:system cannot be called without arguments"),
        (["x.onnx"], "x.onnx is an ONNX file"),
        ([MODEL, "--dtype", "float8"], "unknown dtype 'float8'"),
        ([MODEL, "--checkpoint", "none.pth"], "none.pth"),
        ([MODEL, "--tuning-logs", "none"], "tuning logs none do not exist"),
    ],
)
def test_wrong_words(tmp_path: Path, words: list[str], message: str) -> None:
    line = run_cli("compile", *words, "-o", tmp_path / "x.so").error_line()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_module_of_the_current_folder(tmp_path: Path) -> None:
    """A console script has its own folder on sys.path, not the current one."""
    script = tmp_path / "bin" / "tvm-involution"
    script.parent.mkdir()
    script.write_text("from tvm_involution.cli import main\nmain()\n")
    (tmp_path / "here.py").write_text("import torch\n\ndef build():\n    return torch.nn.Conv2d(3, 4, 1)\n")
    words = [sys.executable, script, "compile", "here:build", "--image-size", "4x4", "-o", "here.so"]
    for _ in range(2):  # the library then lies beside the source, and is what Python finds first
        options = {"cwd": tmp_path, "check": True, "env": {**os.environ, "PYTHONPATH": str(TESTS.parent)}}
        done = subprocess.run(words, capture_output=True, text=True, **options)
        assert "`import here` finds this library before here.py" in done.stdout
    assert read_metadata(tmp_path / "here.so").name == "here:build"


def test_files_of_the_current_folder_are_not_run(tmp_path: Path) -> None:
    """Neither for a zoo name, nor before the modules that they are called like."""
    for name in ("torch", "numpy", "click", "typing_extensions"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    (tmp_path / "here.py").write_text("import torch\n\ndef build():\n    return torch.nn.Conv2d(3, 4, 1)\n")
    for words in (["rednet5O"], ["here:build", "--image-size", "4x4"]):
        subprocess.run(
            [sys.executable, "-m", "tvm_involution", "compile", *words, "-o", "x.so"],
            cwd=tmp_path,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        )
    assert read_metadata(tmp_path / "x.so").name == "here:build" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "100000", "--image-size", "224x224"], "the input of shape (100000, 3, 224, 224) would have"),
        (["--image-size", "30000x30000"], "the input of shape (1, 3, 30000, 30000) would have 2700000000 elements"),
        (["--image-size", "15000x15000"], "convolution in the network of shape (1, 16, 15000, 15000) would have"),
    ],
)
def test_sizes_that_cannot_be_addressed(tmp_path: Path, words: list[str], message: str) -> None:
    result = run_cli("compile", MODEL, *words, "-o", tmp_path / "x.so")
    assert result.status == 2 and result.err.count("\n") == 1 and message in result.err, result
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("output", ["missing/x.so", "file/x.so", "."])
def test_unwritable_output_is_refused_at_once(tmp_path: Path, output: str) -> None:
    (tmp_path / "file").write_text("a file")
    line = run_cli("compile", MODEL, "-o", tmp_path / output).error_line()
    assert f"cannot write {tmp_path / output}" in line
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_linker_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linker = tmp_path / "cc"
    linker.write_text("#!/bin/sh\necho the disk is on fire >&2\nexit 1\n")
    linker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "out").mkdir()
    result = run_cli("compile", MODEL, "--image-size", "6x6", "-o", tmp_path / "out" / "x.so")
    assert result.status == 2 and result.err.count("\n") == 1 and "the disk is on fire" in result.err
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("phase", "number", "word"),
    [
        ("import from PyTorch", signal.SIGINT, "interrupted"),
        ("lay out channels last", signal.SIGTERM, "ended by SIGTERM"),
        ("generate code", signal.SIGINT, "interrupted"),
        ("link", signal.SIGTERM, "ended by SIGTERM"),
    ],
)
def test_ctrl_c(tmp_path: Path, phase: str, number: signal.Signals, word: str) -> None:
    """At any phase, and twice in a row as `timeout` does: one line, status 128 + signal, no file, no hidden folder."""
    words = ["compile", "conftest:tiny_rednet", "--image-size", "32x32", "-o", str(tmp_path / "x.so")]
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tvm_involution", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        preexec_fn=default_signals,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if phase in line:
            break
    process.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert err.splitlines()[-1] == f"tvm-involution: {word}; no file is half written"
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_what_is_compiled_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, archive = tmp_path / "kept_network.py", tmp_path / "kept.pt2"
    source.write_text("import torch\ndef build():\n    return torch.nn.Conv2d(3, 4, 1).eval()\n")
    archive.write_bytes(b"not read before the check")
    monkeypatch.chdir(tmp_path)
    for model, output in (("kept_network:build", "kept_network.py"), ("kept.pt2", archive)):
        result = run_cli("compile", model, "-o", output)
        assert result.status == 2 and "would be overwritten" in result.err, result.err
    result = run_cli("bench", "kept_network:build", "--json", source)
    assert result.status == 2 and "would be overwritten" in result.err
    assert source.read_text().startswith("import torch") and archive.read_bytes().startswith(b"not")
