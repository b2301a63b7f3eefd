# SPDX-License-Identifier: Apache-2.0
"""Two convolutions that are added are one product on GPUs, and what looks like it stays as it is."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import torch
from emulated_network import run_emulated
from programs import TOLERANCE
from reference import relative_norm
from torch import nn

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target


class Shortcut(nn.Module):
    """A convolution of some channels and a convolution of the others, added."""

    def __init__(self, first: tuple[int, int], second: tuple[int, int], out: int, stride: int, shared: bool = False):
        super().__init__()
        self.first = nn.Conv2d(first[0], out, first[1], stride, first[1] // 2)
        self.second = nn.Conv2d(second[0], out, second[1], stride, second[1] // 2)
        self.shared = shared

    def forward(self, x):
        channels = self.first.in_channels
        left, right = self.first(x[:, :channels]), self.second(x[:, channels:])
        return (left + right).relu() * left if self.shared else (left + right).relu()


def target(architecture: str):
    return resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')


def products(module: nn.Module, shape: tuple[int, ...], own, dtype: str = "float16") -> int:
    mod = import_exported_program(export_module(module.eval(), [torch.zeros(shape)]))
    mod = pipeline.run(mod, own, dtype=dtype, until="lower operators")
    return sum("conv2d" in name.name_hint for name in mod.get_global_vars())


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize(
    ("module", "size", "dtype", "architecture"),
    [
        # sums that are no whole chunks, odd sizes; warps that share a sum; what has no tensor cores
        (Shortcut((40, 1), (24, 1), 50, 2), (3, 9, 7), "bfloat16", "sm_80"),
        (Shortcut((256, 1), (128, 1), 40, 2), (1, 13, 13), "float16", "sm_80"),
        (Shortcut((17, 1), (30, 3), 24, 2), (2, 7, 9), "float32", "sm_80"),
    ],
    ids=str,
)
def test_the_sum_of_both(rng, module, size, dtype, architecture):
    own, channels = target(architecture), module.first.in_channels + module.second.in_channels
    x = rng.standard_normal((size[0], channels, *size[1:])).astype("float32")
    assert products(module, x.shape, own, dtype) == 1
    actual = run_emulated(module.eval(), x, own, dtype)
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x.astype(np.float64))).numpy()
    module.float()
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


def test_what_is_used_twice_or_broadcast_stays():
    own = target("sm_80")
    assert products(Shortcut((32, 1), (32, 1), 32, 1, shared=True), (2, 64, 8, 8), own) == 2
    module = Shortcut((32, 1), (32, 1), 32, 1)
    module.second.stride = (8, 8)  # one pixel, added to all
    assert products(module, (2, 64, 8, 8), own) == 2
    assert products(Shortcut((32, 1), (32, 1), 32, 8), (1, 64, 8, 8), own) == 2
