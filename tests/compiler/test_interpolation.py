# SPDX-License-Identifier: Apache-2.0
"""Interpolation in every mode, to larger and smaller sizes, against torch in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import TOLERANCE
from torch import Tensor, nn
from torch.nn import functional

import tvm_involution as ti
from tvm_involution.te.interpolation import interpolation_taps

OPTIONS = [
    {"size": (7, 23)},
    {"scale_factor": 2.3},
    {"size": (19, 26), "align_corners": True},
    {"size": (5, 6), "antialias": True},
    {"scale_factor": (0.4, 1.7), "antialias": True},
    {"size": (1, 40), "antialias": True, "align_corners": True},
]


class Pictures(nn.Module):
    """All options of a mode, one behind ReLU, one channels last, and torch's operator as it is."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        sizes = [functional.interpolate(x, mode=self.mode, **options) for options in OPTIONS]
        channels_last = functional.interpolate(x, (9, 20), mode=self.mode).permute(0, 2, 3, 1) * 2
        own = getattr(torch.ops.aten, f"_upsample_{self.mode}2d_aa").default(x, [8, 9], False, None, 0.8)
        return *sizes, torch.relu(sizes[0] + 1), channels_last, own


@pytest.mark.parametrize(
    ("shape", "mode", "dtype"),
    [
        ((2, 5, 13, 11), "bilinear", "float32"),
        ((1, 19, 10, 13), "bicubic", "bfloat16"),
    ],
)
def test_modes(tmp_path: Path, shape: tuple[int, ...], mode: str, dtype: str) -> None:
    x = torch.randn(shape).to(getattr(torch, dtype))
    library = ti.compile((Pictures(mode).eval(), (x.float(),)), dtype=dtype)
    assert library.metadata.kernels.by_rule["Interpolation"] == len(OPTIONS) + 2
    library.save(tmp_path / "pictures.so")
    for actual, expected in zip(ti.load(tmp_path / "pictures.so")(x), Pictures(mode)(x.double()), strict=True):
        assert actual.shape == expected.shape
        assert (actual.double() - expected).norm() / expected.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize(("size", "out"), [(9, 4), (4, 9), (100, 3)])
def test_lanczos(size: int, out: int) -> None:
    """By torch's own operator; its `interpolate` has no such mode for numbers."""
    x = torch.randn(1, 1, size, 6, dtype=torch.float64)
    taps = interpolation_taps("lanczos", size, out, None, False, True)
    actual = (x[0, 0].numpy()[taps.places] * taps.weights[..., None]).sum(1)
    expected = torch.ops.aten._upsample_lanczos2d_aa.default(x, [out, 6], False)[0, 0]
    assert abs(actual - expected.numpy()).max() < 1e-12


def test_nan_reaches_what_torch_reaches(tmp_path: Path) -> None:
    x = torch.randn(1, 4, 6, 7)
    x[0, 1, 2, 3] = torch.nan
    x[0, 2, 5, 0] = torch.inf
    ti.compile((nn.Upsample(scale_factor=2, mode="bilinear"), (x,))).save(tmp_path / "up.so")
    expected = nn.Upsample(scale_factor=2, mode="bilinear")(x)
    actual = ti.load(tmp_path / "up.so")(x)
    torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-5, atol=1e-6)
