# SPDX-License-Identifier: Apache-2.0
"""Norms of numbers far from zero, in every type and layout, against torch in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from programs import TOLERANCE
from torch import Tensor, nn

import tvm_involution as ti


class Batch(nn.Module):
    """Batch norm by the statistics of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


NORMS = {
    "group": lambda: nn.GroupNorm(4, 24),
    "group of one": lambda: nn.GroupNorm(24, 24, affine=False),
    "instance": lambda: nn.InstanceNorm2d(24, affine=True),
    "instance plain": lambda: nn.InstanceNorm2d(24),
    "layer": lambda: nn.LayerNorm(13),
    "layers": lambda: nn.LayerNorm((24, 9, 13), eps=1e-3),
    "batch": Batch,
    "channels last": lambda: nn.Sequential(nn.Conv2d(24, 32, 1), nn.GroupNorm(8, 32), nn.SiLU(), nn.Conv2d(32, 5, 1)),
    "rms": lambda: nn.RMSNorm(13),
}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", NORMS)
def test_norms(rng, tmp_path: Path, name: str, dtype: str) -> None:
    module = NORMS[name]().eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter, 1.0, 0.3)
    # what a half type keeps of such numbers is an eighth or less
    x = torch.randn(2, 24, 9, 13) + (20 if dtype == "float32" else 2)
    if name == "channels last":
        x -= x.mean().round()
    ti.compile((module, (x,)), dtype=dtype).save(tmp_path / "norm.so")
    given = x.to(getattr(torch, dtype))
    actual = ti.load(tmp_path / "norm.so")(given).double()
    expected = module.double()(given.double()).detach()
    assert (actual - expected).norm() / expected.norm() < TOLERANCE[dtype]


def test_rows_without_pixels(rng, tmp_path: Path) -> None:
    module, x = nn.GroupNorm(4, 24).eval(), torch.randn(3, 24) + 20
    ti.compile((module, (x,))).save(tmp_path / "norm.so")
    expected = module.double()(x.double()).detach()
    assert (ti.load(tmp_path / "norm.so")(x).double() - expected).norm() / expected.norm() < 1e-5
