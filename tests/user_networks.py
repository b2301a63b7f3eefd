# SPDX-License-Identifier: Apache-2.0
"""Networks as users write them, named as `user_networks:function`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tvm_involution.nn import Involution2d


class Pair(NamedTuple):
    """A tuple with names."""

    total: Tensor
    parts: tuple[Tensor, Tensor]


class TwoPictures(nn.Module):
    """Two pictures and a vector for any batch; a dictionary with a tuple and a named tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), Involution2d(16, 3)

    def forward(self, left: Tensor, right: Tensor, scale: Tensor) -> dict[str, Any]:
        a = self.second(self.first(left).relu()) * scale[:, None, None]
        b = self.second(self.first(right))
        return {"features": a, "both": (a.mean((2, 3)), b.amax((2, 3))), "pair": Pair(a + b, (a, b))}


class Mapping(nn.Module):
    """Takes a dictionary and a list, by name; whole numbers choose among embeddings. One output is for all."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.involution = nn.Embedding(5, 16), Involution2d(16, 3)

    def forward(self, features: dict[str, Tensor], maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        x = maps[0] + maps[1] + self.table(features["kind"])[:, :, None, None]
        return self.involution(x), x.mean()


def two_pictures() -> tuple[nn.Module, Any]:
    """Positional arguments, batch 2."""
    return TwoPictures().eval(), (torch.randn(2, 3, 8, 6), torch.randn(2, 3, 8, 6), torch.randn(16))


def mapping() -> tuple[nn.Module, Any]:
    """Arguments by name, batch 2."""
    maps = [torch.randn(2, 16, 5, 7), torch.randn(2, 16, 5, 7)]
    return Mapping().eval(), {"features": {"kind": torch.tensor([3, 1])}, "maps": maps}
