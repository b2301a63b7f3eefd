# SPDX-License-Identifier: Apache-2.0
"""Count parameters and operations, as the published tables do.

The official counter (mmcv's get_model_complexity_info) counts multiply-adds of convolutions (transposed ones, too)
and of linear layers, and adds a convolution's bias (one a value of the output), batch norm (two a value), ReLU and
pooling (one a value of the input); the published figures have the multiply-adds of involutions, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from ..arguments import Size, checked
from ..errors import told_in_one_line
from .attention import LocalAttention2d
from .involution import Involution

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_POOLING = tuple(getattr(nn, f"{kind}Pool{axes}d") for kind in ("Max", "Avg", "AdaptiveAvg") for axes in (1, 2, 3))
_COUNTED = (*_CONVOLUTIONS, nn.ConvTranspose2d, nn.Linear, *_NORMS, nn.ReLU, Involution, LocalAttention2d, *_POOLING)


@dataclass
class Operations:
    """Operations of one inference; multiply-adds where there are products."""

    convolution: int = 0
    linear: int = 0
    involution: int = 0
    batch_norm: int = 0
    relu: int = 0
    pooling: int = 0
    bias: int = 0

    @property
    def multiply_adds(self) -> int:
        """Convolutions, linear layers and involutions alone; local self-attention is one."""
        return self.convolution + self.linear + self.involution

    @property
    def total(self) -> int:
        """What the official counter prints."""
        return self.multiply_adds + self.batch_norm + self.relu + self.pooling + self.bias


@checked
def count_parameters(model: nn.Module) -> int:
    """Return the number of trained values."""
    return sum(p.numel() for p in model.parameters())


@checked
def count_operations(model: nn.Module, input_size: tuple[Size, ...]) -> Operations:
    """Run `model` once on zeros (1, C, H, W) of `input_size` (C, H, W), or (C, W) or (C, D, H, W), and count."""
    counts = Operations()

    def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        values = inputs[0].numel()
        if isinstance(module, _CONVOLUTIONS):
            taps = module.weight[0].numel()
            counts.convolution += output.numel() * taps
            counts.bias += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.ConvTranspose2d):
            counts.convolution += values * module.weight[0].numel()
            counts.bias += output.numel() if module.bias is not None else 0
        elif isinstance(module, nn.Linear):
            counts.linear += output.numel() * module.in_features
        elif isinstance(module, LocalAttention2d):
            # scores, positions in the window where they are learnt as vectors, aggregation
            products = 2 if module.row is None else 3
            counts.involution += products * output.numel() * math.prod(module.kernel_size)
        elif isinstance(module, Involution):
            counts.involution += output.numel() * math.prod(module.kernel_size)
        elif isinstance(module, _NORMS):
            counts.batch_norm += 2 * values
        elif isinstance(module, nn.ReLU):
            counts.relu += values
        elif isinstance(module, _POOLING):
            counts.pooling += values

    handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, _COUNTED)]
    try:
        with torch.no_grad(), told_in_one_line(f"count_operations: the model does not take input_size {input_size}"):
            model(torch.zeros(1, *input_size))
    finally:
        for handle in handles:
            handle.remove()
    return counts
