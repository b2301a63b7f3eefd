# SPDX-License-Identifier: Apache-2.0
"""Networks that tests name as `bench_networks:function`."""

from __future__ import annotations

import torch


class _Doubles(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def doubles() -> torch.nn.Module:
    """y = 2 x."""
    return _Doubles()


def two_convolutions() -> torch.nn.Module:
    """Of pictures, the second of which becomes products of bytes in int8."""
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))
