# SPDX-License-Identifier: Apache-2.0
"""Whole networks: compiled, saved, loaded, compared with their torch modules in float64."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TESTS
from conftest import tiny_rednet
from reference import relative_norm

import tvm_involution as ti
from tvm_involution.bench.machine_code import nvcc_present
from tvm_involution.target import resolve_target

EXAMPLES = TESTS.parent / "examples"


def reference_output(module: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return module.double()(torch.from_numpy(x).double()).numpy()


# deeper ones have the same layers, more of them
DEPTHS = [26, 50, *(pytest.param(depth, marks=pytest.mark.every_depth) for depth in (38, 101, 152))]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("image_size", [(224, 224), (129, 97)], ids=["224x224", "129x97"])
def test_every_depth(tmp_path, rng, depth, image_size):
    path = tmp_path / "net.so"
    ti.compile(f"rednet{depth}", image_size=image_size).save(path)
    x = rng.standard_normal((1, 3, *image_size)).astype("float32")
    expected = reference_output(ti.nn.build_model(f"rednet{depth}"), x)
    assert relative_norm(ti.load(path)(x), expected) < 1e-5


def test_resnet(tmp_path, rng):
    path = tmp_path / "net.so"
    ti.compile("resnet50", image_size=(64, 96)).save(path)
    x = rng.standard_normal((1, 3, 64, 96)).astype("float32")
    assert relative_norm(ti.load(path)(x), reference_output(ti.nn.build_model("resnet50"), x)) < 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_types(tmp_path, rng, dtype):
    path = tmp_path / "net.so"
    ti.compile(tiny_rednet(), image_size=(40, 33), dtype=dtype).save(path)
    net = ti.load(path)
    assert net.metadata.inputs[0].dtype == dtype
    x = torch.from_numpy(rng.standard_normal((2, 3, 40, 33))).to(getattr(torch, dtype))
    expected = reference_output(tiny_rednet(), x.float().numpy())
    assert relative_norm(net(x).float().numpy(), expected) < 1e-2


def test_batches_are_chosen_by_the_input(small_library, rng):
    net = ti.load(small_library)
    module = tiny_rednet()
    for batch in (1, 2, 4, 7):
        x = rng.standard_normal((batch, 3, 32, 32)).astype("float32")
        assert relative_norm(net(x), reference_output(module, x)) < 1e-5


def test_weights_are_stored_once_for_all_batches(small_library, tmp_path):
    ti.compile(tiny_rednet(), image_size=(32, 32), batch=1).save(tmp_path / "one.so")
    weights = 4 * ti.load(small_library).metadata.parameters
    assert small_library.stat().st_size - (tmp_path / "one.so").stat().st_size < weights


def test_fresh_process_runs_the_library(small_library, tmp_path, rng):
    x = rng.standard_normal((1, 3, 32, 32)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, numpy as np, tvm_involution as ti\n"
        "np.save(sys.argv[2], ti.load(sys.argv[1])(np.load(sys.argv[3])))"
    )
    arguments = [str(small_library), str(tmp_path / "y.npy"), str(tmp_path / "x.npy")]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, cwd=tmp_path)
    assert relative_norm(np.load(tmp_path / "y.npy"), reference_output(tiny_rednet(), x)) < 1e-5


@pytest.mark.parametrize("name", ["rednet_digits", "rednet_photos"])
def test_trained_networks_keep_their_accuracy(tmp_path, name, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import small_datasets

    split = small_datasets.digits()[1] if name == "rednet_digits" else small_datasets.held_out_photos()
    path = tmp_path / "net.so"
    ti.compile(name, batch=(1, 16)).save(path)
    compiled = ti.load(path)(split.images).argmax(1)
    with torch.no_grad():
        original = ti.nn.build_model(name)(torch.from_numpy(split.images)).argmax(1).numpy()
    accuracy = float((compiled == split.labels).mean())
    assert np.array_equal(compiled, original)
    published = ti.list_models()
    stated = next(m for m in published if m.name == name).published["held_out_accuracy"]
    assert accuracy * 100 == pytest.approx(stated, abs=0.05)


def test_module_given_is_left_as_it_was(tmp_path):
    module = tiny_rednet().half().train()
    ti.compile(module, image_size=(32, 32)).save(tmp_path / "net.so")
    assert module.training
    assert next(module.parameters()).dtype == torch.float16


def test_function_reference(tmp_path, rng):
    path = tmp_path / "net.so"
    sys.path.insert(0, str(TESTS))
    ti.compile("conftest:tiny_rednet", image_size=(32, 32)).save(path)
    x = rng.standard_normal((1, 3, 32, 32)).astype("float32")
    assert relative_norm(ti.load(path)(x), reference_output(tiny_rednet(), x)) < 1e-5


def elf_machine(path: Path) -> int:
    return int.from_bytes(path.read_bytes()[18:20], "little")


def test_library_for_another_cpu(tmp_path):
    path = tmp_path / "net.so"
    target = '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"}'
    ti.compile(tiny_rednet(), target, image_size=(32, 32)).save(path)
    assert elf_machine(path) == 183  # EM_AARCH64
    with pytest.raises(ti.UserError, match="aarch64-linux-gnu"):
        ti.load(path)


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
def test_library_for_a_gpu_elsewhere(tmp_path):
    path = tmp_path / "net.so"
    library = ti.compile(tiny_rednet(), "nvidia/nvidia-h100", image_size=(32, 32))
    library.save(path)
    assert library.metadata.device_type == "cuda"
    assert library.metadata.target["arch"] == "sm_90a"
    assert "avx512f" not in library.metadata.cpu_features
    with pytest.raises(ti.UserError, match="was compiled for cuda"):
        ti.load(path, device="cpu")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nvidia/nvidia-h10", "nvidia/nvidia-h100"),
        ("no-such", "unknown target"),
        ('{"kind": "llvm"', "unknown target"),
        ("vulkan", "not supported"),
    ],
)
def test_unknown_targets(text, words):
    with pytest.raises(ti.UserError) as error:
        resolve_target(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_cuda_without_a_gpu_says_what_to_do():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ti.UserError, match="nvidia/nvidia-h100"):
        resolve_target("cuda")


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ("rednet51", {}, "did you mean"),
        ("rednet26", {"dtype": "int9"}, "unknown dtype"),
        ("rednet26", {"batch": 0}, "batch must be a whole number of at least 1"),
        ("missing.pt2", {}, "does not exist"),
        ("conftest:no_such_function", {}, "cannot import"),
        ("no_such_package:f", {}, "cannot import"),
        ("conftest:Path", {}, "expected a torch.nn.Module"),
    ],
)
def test_bad_arguments(model, arguments, words):
    with pytest.raises(ti.UserError) as error:
        ti.compile(model, **arguments)
    assert words in str(error.value)


def test_damaged_export(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(tiny_rednet(), (torch.zeros(1, 3, 32, 32),)), path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ti.UserError, match=r"\.pt2"):
        ti.compile(path)


def test_export_has_the_batch_it_was_made_for(tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(tiny_rednet(), (torch.zeros(3, 3, 32, 32),)), path)
    assert ti.compile(path).metadata.batch_sizes == (3,)
    with pytest.raises(ti.UserError, match="batch 3"):
        ti.compile(path, batch=1)
