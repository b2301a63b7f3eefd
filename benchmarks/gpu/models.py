# SPDX-License-Identifier: Apache-2.0
"""The networks, the same in every process."""

from __future__ import annotations

import torch
from torch import nn

from tvm_involution.frontend.network import Network, resolve_network


def find_network(model: str, image_size: int) -> Network:
    """Return a zoo network or that of `package.module:function`, initialized from a fixed seed.

    Raises:
        UserError: see `resolve_network`.
    """
    torch.manual_seed(0)
    return resolve_network(model, image_size=(image_size, image_size))


def find_module(model: str, image_size: int) -> nn.Module:
    """Return its module, float32, on the CPU, in evaluation mode."""
    module = find_network(model, image_size).module
    assert module is not None
    return module.eval()
