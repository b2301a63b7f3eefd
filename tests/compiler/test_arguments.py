# SPDX-License-Identifier: Apache-2.0
"""What is no argument of `compile`, `tune`, `load` or a call ends in one line; numpy's numbers are numbers."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from reference import relative_norm
from torch import nn

import tvm_involution as ti


class Locked(nn.Module):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lock = nn.Conv2d(3, 4, 3), threading.Lock()

    def forward(self, x):
        return self.conv(x)


def assert_refused(function, words: str) -> None:
    with pytest.raises(ti.UserError) as error:
        function()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"batch": "8"}, "batch must be a whole number"),
        ({"batch": 1.5}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"batch": []}, "batch must have at least one size"),
        ({"batch": -1}, "batch must be a whole number of at least 1"),
        ({"batch": 10**30}, "batch must be"),
        ({"batch": 1 << 30}, "take a smaller batch or image size"),
        ({"image_size": 32}, "image_size must be a tuple of 2"),
        ({"image_size": (0, 8)}, "image_size must be"),
        ({"image_size": (8, 8.5)}, "image_size must be"),
        ({"target": None}, "target must be"),
        ({"target": '{"kind": "llvm", "mcpu": "nonesuch"}'}, "LLVM knows no CPU"),
        ({"checkpoint": 3}, "checkpoint must be"),
        ({"checkpoint": {"a": torch.zeros(1)}}, "missing 2: weight, bias"),
        ({"dtype": torch.float16}, "dtype must be a string"),
        ({"dtype": "bogus"}, "unknown dtype"),
        ({"tuning_logs": 3}, "tuning_logs must be"),
        ({"progress": 3}, "progress must be a function"),
        ({"cuda_graph": "yes"}, "cuda_graph must be True or False"),
        ({"bogus": 1}, "unexpected keyword argument 'bogus'"),
    ],
)
def test_compile(arguments, words):
    assert_refused(lambda: ti.compile(nn.Conv2d(3, 4, 3), **{"image_size": (8, 8), **arguments}), words)


@pytest.mark.parametrize("dtype", ["uint8", "float64", "bogus"])
def test_a_dtype_that_no_library_has(tmp_path, dtype):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),)), path)
    assert_refused(lambda: ti.compile(path, dtype=dtype), f"unknown dtype '{dtype}'")


def test_int8_without_calibration():
    assert_refused(lambda: ti.compile(nn.Conv2d(8, 4, 3), image_size=(8, 8), dtype="int8"), "give --calibration")


def test_a_program_of_a_type_that_no_library_has(tmp_path):
    path = tmp_path / "net.pt2"
    program = torch.export.export(
        nn.Conv2d(3, 4, 3).to(torch.float8_e5m2), (torch.zeros(1, 3, 8, 8, dtype=torch.float8_e5m2),)
    )
    torch.export.save(program, path)
    assert_refused(lambda: ti.compile(path), "exported in float8")


def test_numbers_of_numpy_and_a_state_dict(tmp_path, rng):
    module, other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    other.weight.requires_grad_(False)
    library = ti.compile(
        other, image_size=(np.int64(8), np.int32(8)), batch=(1, np.int32(3)), checkpoint=module.state_dict()
    )
    assert library.metadata.batch_sizes == (1, 3)
    assert library.metadata.parameters == 4  # the frozen weight is not trained
    assert library.metadata.inputs[0].layout == "NCHW" and library.metadata.outputs[0].layout == ""
    library.save(tmp_path / "net.so")
    x = torch.randn(2, 3, 8, 8)
    assert (
        relative_norm(ti.load(tmp_path / "net.so", torch.device("cpu"))(x).numpy(), module(x).detach().numpy()) < 1e-5
    )


def test_modules_that_copy_does_not_take(tmp_path, rng):
    assert_refused(lambda: ti.compile(Locked(), image_size=(8, 8)), "Locked cannot be copied")
    module = torch.nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    ti.compile(module, image_size=(8, 8)).save(tmp_path / "net.so")
    x = torch.randn(1, 3, 8, 8)
    assert relative_norm(ti.load(tmp_path / "net.so")(x).numpy(), module(x).detach().numpy()) < 1e-5


def test_sparse_examples():
    assert_refused(lambda: ti.compile((nn.Linear(3, 2), torch.eye(3).to_sparse())), "sparse; give dense ones")


def test_what_is_no_tensor_among_the_weights():
    quantized = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear})
    assert_refused(lambda: ti.compile((quantized, torch.randn(1, 4))), "cannot trace Sequential")


def test_tune_takes_one_batch_size():
    assert_refused(lambda: ti.tune(nn.Conv2d(3, 4, 3), batch=(1, 8)), "batch must be a whole number")
    assert_refused(lambda: ti.tune(nn.Conv2d(3, 4, 3), minutes=float("nan")), "minutes must be a number")


def test_load_and_calls(small_library):
    assert_refused(lambda: ti.load(None), "path must be")
    assert_refused(lambda: ti.load(small_library, 3), "unknown device 3")
    net = ti.load(small_library)
    x = torch.zeros(1, 3, 32, 32)
    assert_refused(lambda: net(x.to_sparse()), "plain tensors")
    assert_refused(lambda: torch.vmap(net)(x[None]), "vmap")
    assert_refused(lambda: net(np.ma.zeros(x.shape, np.float32)), "masked")
    assert_refused(lambda: net(x.to("meta")), "runs on cpu")


@pytest.mark.parametrize("count", ["abc", "100000"])
def test_threads_that_cannot_be(monkeypatch, count):
    monkeypatch.setenv("TVM_NUM_THREADS", count)
    assert_refused(lambda: ti.compile("rednet26"), f"TVM_NUM_THREADS is '{count}'")


@pytest.mark.parametrize(("dtype", "value"), [("float16", 1e5), ("bfloat16", 3.4e38)])
def test_weights_that_a_half_type_has_not(tmp_path, dtype, value):
    """They would be infinite, or another number; the same network fits into float32."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    with torch.no_grad():
        module[0].weight[1, 2] = value
        module[1].running_var[:] = 1e6  # is folded before anything is rounded
    torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 4, 4),)), path := tmp_path / "x.pt2")
    for model, options in ((module, {"image_size": (4, 4)}), (path, {})):
        assert_refused(
            lambda m=model, o=options: ti.compile(m, dtype=dtype, **o),
            f"has values of up to {value:.3g}, and those of {dtype} end at",
        )
    assert ti.compile(module, image_size=(4, 4)).metadata.dtype == "float32"
    with torch.no_grad():
        module[0].weight[1, 2] = 1.0
    assert ti.compile(module, dtype=dtype, image_size=(4, 4)).metadata.dtype == dtype


def test_float64_is_taken_in_float32(tmp_path, rng):
    module = nn.Linear(4, 3).double().eval()
    ti.compile((module, torch.zeros(1, 4, dtype=torch.float64))).save(path := tmp_path / "x.so")
    net = ti.load(path)
    assert [spec.dtype for spec in (*net.metadata.inputs, *net.metadata.outputs)] == ["float32"] * 2
    x = rng.standard_normal((1, 4))
    with torch.no_grad():
        assert relative_norm(net(x.astype("float32")), module(torch.from_numpy(x)).numpy()) < 1e-5
    assert module.weight.dtype == torch.float64


@pytest.mark.parametrize("module", [torch.nn.Conv2d(3, 4, 1, device="meta"), torch.nn.LazyConv2d(4, 1)])
def test_weights_without_values(module):
    with pytest.raises(ti.UserError, match=r"weight of .*Conv2d has no (values|shape)") as refused:
        ti.compile((module, torch.zeros(1, 3, 8, 8)))
    assert "\n" not in str(refused.value)


def test_training_mode_is_noted(tmp_path):
    training = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Dropout(0.5))
    library = ti.compile((training, torch.zeros(1, 3, 8, 8)))
    assert any("training mode" in note for note in library.notes) and training.training
    library.save(tmp_path / "net.so")
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(ti.load(tmp_path / "net.so")(x), training[0](x), atol=1e-5)
    assert not ti.compile((training.eval(), torch.zeros(1, 3, 8, 8))).notes


def test_a_checkpoint_is_not_overwritten(tmp_path):
    module, path = torch.nn.Conv2d(3, 4, 1), tmp_path / "weights.pth"
    torch.save(module.state_dict(), path)
    before = path.read_bytes()
    library = ti.compile((module.eval(), torch.zeros(1, 3, 8, 8)), checkpoint=path)
    with pytest.raises(ti.UserError, match="would be overwritten"):
        library.save(path)
    assert path.read_bytes() == before
