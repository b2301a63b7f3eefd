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
