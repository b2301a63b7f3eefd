# SPDX-License-Identifier: Apache-2.0
"""Operators that the importer takes apart by itself, where PyTorch's own samples do not go: ties, NaN, empty bags."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tvm_involution as ti


class Running(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return *torch.cummax(x, 1), *torch.cummin(x, -1), *torch.cummax((x * 2).to(torch.int64), 0)


def test_running_extremes_of_ties_and_nan(rng, tmp_path: Path) -> None:
    x = torch.randint(-3, 4, (3, 13, 5)) / 2.0
    x[1, 4, 2] = float("nan")
    ti.compile((Running(), (torch.zeros(3, 13, 5),))).save(tmp_path / "running.so")
    # integers of NaN are whatever the machine makes of it
    given = x.clone()
    for place, (actual, expected) in enumerate(zip(ti.load(tmp_path / "running.so")(given), Running()(x), strict=True)):
        if place < 4:
            torch.testing.assert_close(actual, expected, equal_nan=True)
    given = x.nan_to_num(1.0)
    for actual, expected in zip(ti.load(tmp_path / "running.so")(given), Running()(given), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("training", [False, True])
def test_a_randomized_slope_is_the_mean_in_inference(rng, tmp_path: Path, training: bool) -> None:
    module, x = nn.RReLU(0.1, 0.5).train(training), torch.randn(3, 7)
    ti.compile((module, x)).save(tmp_path / "slope.so")
    torch.testing.assert_close(ti.load(tmp_path / "slope.so")(x), nn.functional.leaky_relu(x, 0.3))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags(rng, tmp_path: Path, mode: str) -> None:
    bag = nn.EmbeddingBag(17, 6, mode=mode, padding_idx=3).eval()
    indices, offsets = torch.randint(0, 17, (11,)), torch.tensor([0, 0, 4, 4, 10])
    indices[4:10] = torch.tensor([3, 3, 5, 3, 3, 3])
    ti.compile((bag, (indices, offsets))).save(tmp_path / "bag.so")
    for starts in (offsets, torch.tensor([0, 3, 3, 4, 11])):
        torch.testing.assert_close(ti.load(tmp_path / "bag.so")(indices, starts), bag(indices, starts).detach())


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_volumes_are_sampled(rng, tmp_path: Path, padding: str) -> None:
    class Sample(nn.Module):
        def forward(self, x: Tensor, grid: Tensor) -> Tensor:
            sample = nn.functional.grid_sample
            return sample(x, grid, padding_mode=padding, align_corners=False) + sample(
                x, grid, "nearest", padding, align_corners=True
            )

    x, grid = torch.randn(2, 3, 5, 1, 7), torch.rand(2, 4, 3, 5, 3) * 5 - 2.5
    ti.compile((Sample(), (x, grid))).save(tmp_path / "sample.so")
    torch.testing.assert_close(ti.load(tmp_path / "sample.so")(x, grid), Sample()(x, grid))
