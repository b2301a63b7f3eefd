# SPDX-License-Identifier: Apache-2.0
"""A quantized network answers like its float32 twin, whatever stands between its layers; and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from command_line import run_cli
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.quantization.ranges import Range, quantized_weight
from tvm_involution.schedules.cpu.dot_int8 import fits_pairs


class Mixed(nn.Module):
    """Signed and unsigned inputs of layers, padding, strides, poolings, a residual, an involution, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2))
        self.signed = nn.Sequential(nn.Conv2d(24, 40, 3, 2, 2, 2), nn.SiLU(), nn.Conv2d(40, 32, 3, padding=1))
        self.reduce = nn.Sequential(nn.Conv2d(24, 32, 1), nn.ReLU())
        self.involution = ti.nn.Involution2d(32, 5, stride=2, group_channels=16)
        self.expand = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 7)

    def forward(self, x):
        x = self.stem(x)
        y = self.signed(x) + self.expand(self.involution(self.reduce(x)).relu())
        return self.head(y.relu().mean((2, 3)))


@pytest.fixture
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


@pytest.mark.parametrize("target", ["llvm", '{"kind": "llvm", "mcpu": "haswell", "mtriple": "x86_64-linux-gnu"}'])
def test_network(mixed, rng, tmp_path, target):
    shown, fresh = (rng.standard_normal((n, 3, 22, 26)).astype(np.float32) for n in (6, 3))
    library = ti.compile((mixed, torch.from_numpy(shown[:2])), target, dtype="int8", calibration=shown, batch=2)
    layers = library.metadata.quantized
    assert len(layers) == 7 and not any(layer.kept_because for layer in layers)
    assert {layer.zero > 0 for layer in layers} == {True, False}
    library.save(tmp_path / "int8.so")
    with torch.no_grad():
        expected = mixed(torch.from_numpy(fresh)).numpy()
    assert 1e-5 < relative_norm(ti.load(tmp_path / "int8.so")(fresh), expected) < 0.03


def test_a_layer_of_outliers_stays_in_float32(rng, tmp_path):
    """One input channel is a million times as large as the others, which alone the output shows."""
    net = nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 1)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(16).reshape(16, 16, 1, 1)), net[0].bias.zero_()
        net[2].weight[:, 0] = 0
    shown = np.abs(rng.standard_normal((4, 16, 6, 6))).astype(np.float32)
    shown[:, 0] *= 1e6
    library = ti.compile((net, torch.from_numpy(shown)), dtype="int8", calibration=shown)
    _, second = library.metadata.quantized
    assert second.kept_because and second.decibels < 20
    assert any("stays in float32" in note for note in library.notes)


def test_no_number_in_an_input(rng, tmp_path):
    """NaN is taken for the least number of its tensor's range, infinities for its ends."""
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.SiLU(), nn.Conv2d(8, 5, 1)).eval()
    shown = rng.standard_normal((4, 8, 9, 7)).astype(np.float32)
    ti.compile((net, torch.from_numpy(shown[:1])), dtype="int8", calibration=shown).save(tmp_path / "net.so")
    network = ti.load(tmp_path / "net.so")
    for value, same in ((np.nan, -1e6), (np.inf, 1e6), (-np.inf, -1e6)):
        odd, ordinary = (shown[:1].copy() for _ in range(2))
        odd[0, 3, 4, ::3], ordinary[0, 3, 4, ::3] = value, same
        assert np.array_equal(network(odd), network(ordinary)) and not np.array_equal(network(odd), network(shown[:1]))


def test_no_number_in_calibration(rng):
    """Not in the pictures, nor in what the network makes of them."""
    net = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)).eval()
    shown = rng.standard_normal((2, 8, 4, 4)).astype(np.float32)
    for bad in (np.nan, np.inf):
        given = shown.copy()
        given[1, 0, 0, 0] = bad
        with pytest.raises(ti.UserError, match="holds NaN or infinity for input"):
            ti.compile((net, torch.from_numpy(shown[:1])), dtype="int8", calibration=given)
    net[0].weight.data *= 1e38
    with pytest.raises(ti.UserError, match="network itself computes NaN or infinity"):
        ti.compile((net, torch.from_numpy(shown[:1])), dtype="int8", calibration=10 * shown)


def test_weights_in_pairs(rng):
    """Those whose products CPUs without VNNI add in 16 bits: no two neighbours exceed it, and one nearly does."""
    for shape in ((40, 63, 3, 3), (9, 14)):
        weight = rng.standard_normal(shape).astype(np.float32)
        weight[0], weight[1, :2] = 0, 3 * np.abs(weight).max()
        whole, scale = quantized_weight(weight, in_pairs=True)
        assert fits_pairs(whole) and not fits_pairs(quantized_weight(weight)[0])
        assert np.abs(whole[1]).max() in (63, 64)
        assert np.abs(whole * scale.reshape(-1, *[1] * (len(shape) - 1)) - weight).max() <= 0.51 * scale.max()


def test_bytes_of_a_range(rng):
    values = rng.standard_normal(10_000).astype(np.float32)
    both = Range.of(float(values.min()), float(values.max()))
    error = np.abs(both.restored(both.quantized(values)) - values)
    assert 0 < both.zero < 255 and error.max() <= 0.51 * both.scale
    assert both.restored(both.quantized(np.zeros(1)))[0] == 0
    assert Range.of(0.0, 1e-40).quantized(np.full(2, 1e-40, np.float32)).tolist() == [0, 0]
    assert Range.of(0.5, 3).zero == 0 and Range.of(0.0, 0.0).quantized(np.zeros(2)).tolist() == [0, 0]
    weight = rng.standard_normal((5, 3, 2, 2)).astype(np.float32) * np.arange(5).reshape(5, 1, 1, 1)
    whole, scale = quantized_weight(weight)
    assert not whole[0].any() and np.abs(whole[1:]).reshape(4, -1).max(1).tolist() == [127] * 4
    assert np.abs(whole * scale.reshape(5, 1, 1, 1) - weight).max() <= 0.51 * scale.max()


@pytest.fixture
def arrays(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((2, 3, 8, 8), np.float32))
    np.save(tmp_path / "whole.npy", np.zeros((2, 3, 32, 32), np.int64))
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 32, 32), np.float32))
    np.savez(tmp_path / "other.npz", x=np.zeros((2, 3, 32, 32), np.float32))
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give --calibration"),
        (["--calibration", "small.npy"], "has shape (2, 3, 8, 8); expected float32 (N, 3, 32, 32)"),
        (["--calibration", "whole.npy"], "is int64; expected float32"),
        (["--calibration", "none.npy"], "one picture or more"),
        (["--calibration", "other.npz"], "lacks input"),
        (["--calibration", "empty"], "has no pictures in it"),
        (["--calibration", "missing"], "does not exist"),
        (["--calibration", "small.npy", "--target", "nvidia/nvidia-h100"], "int8 is for CPUs"),
    ],
)
def test_refused(arrays, words, message):
    words = [str(arrays / word) if (arrays / word).exists() or word == "missing" else word for word in words]
    result = run_cli("compile", "rednet_digits", "--dtype", "int8", "-o", str(arrays / "x.so"), *words)
    assert result.status == 2 and len(result.err.splitlines()) == 1 and message in result.err
    assert not (arrays / "x.so").exists()


def test_calibration_is_for_int8(arrays):
    words = ["--calibration", str(arrays / "small.npy"), "-o", str(arrays / "x.so")]
    assert "calibration is for int8 alone" in run_cli("compile", "rednet_digits", *words).error_line()


def test_boxes_are_refused(arrays):
    words = ["--dtype", "int8", "--calibration", str(arrays / "small.npy"), "-o", str(arrays / "x.so")]
    line = run_cli("compile", "retinanet_rednet50", *words).error_line()
    assert "boxes in pixels" in line
