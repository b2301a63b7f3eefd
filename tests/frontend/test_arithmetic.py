# SPDX-License-Identifier: Apache-2.0
"""Divisions, remainders, whole powers and shifts at their edges, equal to torch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tvm_involution as ti

INF = math.inf
FLOATS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "floor divide": lambda x, y: x // y,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "by numbers": lambda x, y: torch.stack([x // 0.3, x % 0.3, x / 0.0, x // -0.0, x % 0.0, x.fmod(0.0)]),
    "spread of one": lambda x, y: torch.stack([x[:1].var(0), x[:3].var(0, correction=3), y[:1].std(0)]),
}
WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "powers of numbers": lambda i: 2**i + 3**i * 5 + (-1) ** i,
    "powers of itself": lambda i: i ** (i.abs() + 1) + i**71 + i.int() ** 3 + i**0,
    "negative powers": lambda i: i.int() ** i.clamp(-2, 4).int(),
    "shifts": lambda i: (i << 2) + (i >> 1) + (2 << i.clamp(0, 5)) + (i << i) + (77 * i >> (i - 2)),
    "remainder of a number": lambda i: 7 % (2 * i + 1),
    "bytes": lambda i: -i.to(torch.uint8) + i.to(torch.uint8) ** 3 + torch.tensor(300),
    "numbers beyond": lambda i: torch.stack(
        [i.to(torch.uint8) < -1, i.to(torch.int8) >= 200, i.to(torch.uint8) == 256]
    ),
}


class Network(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _outputs(function: Callable[..., Tensor], path: Path, *inputs: Tensor) -> tuple[Tensor, Tensor]:
    ti.compile((Network(function), inputs)).save(path / "network.so")
    return ti.load(path / "network.so")(*inputs), function(*inputs)


@pytest.mark.parametrize("name", FLOATS)
def test_floats(rng, tmp_path: Path, name: str) -> None:
    edges = [(INF, 2), (-INF, 3), (5, INF), (-5, INF), (7.5, -INF), (1, 0.1), (3, 0), (0, 0), (-0.0, 1), (math.nan, 1)]
    x = torch.randn(200) * 10 ** torch.randint(-2, 6, (200,)).float()
    y = torch.randn(200) * 10 ** torch.randint(-3, 3, (200,)).float()
    # of quotients around 2^23 torch's own steps round
    x = torch.where((x / y).abs() < 1e6, x, y)
    x, y = (torch.cat((own, torch.tensor(edge))) for own, edge in zip((x, y), zip(*edges, strict=True), strict=True))
    actual, expected = _outputs(FLOATS[name], tmp_path, x, y)
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(tmp_path: Path, name: str) -> None:
    actual, expected = _outputs(WHOLE[name], tmp_path, torch.arange(-3, 70))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_sums_of_nothing(tmp_path: Path) -> None:
    actual, expected = _outputs(torch.matmul, tmp_path, torch.zeros(2, 4, 0), torch.zeros(2, 0, 3))
    torch.testing.assert_close(actual, expected)
