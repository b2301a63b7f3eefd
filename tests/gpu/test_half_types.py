# SPDX-License-Identifier: Apache-2.0
"""Sums of half types on GPUs, in the emulator."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import torch
from emulated_network import run_emulated
from programs import as_dtype
from reference import relative_norm
from torch import nn

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target

needs_emulator = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
H100 = resolve_target("nvidia/nvidia-h100")


class Product(nn.Module):
    def forward(self, x):
        return x @ x.transpose(1, 2)


class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(96)

    def forward(self, x):
        return self.norm(x * 300)


class Cumsum(nn.Module):
    def forward(self, x):
        return x.cumsum(1), x.cumsum(2)


@needs_emulator
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("make", "shape"), [(Product, (1, 3, 4096)), (LayerNorm, (2, 5, 96))])
def test_sums(make, shape, dtype, rng):
    x = as_dtype(np.full(shape, 0.05) if make is Product else rng.standard_normal(shape) + 1, dtype)
    module = make().eval()
    actual = run_emulated(module, x.astype("float32"), H100, dtype)
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x.astype("float64"))).numpy()
    assert relative_norm(actual, expected) < (2e-3 if dtype == "float16" else 1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cumulative_sums_are_kept_in_float32(dtype):
    """By their programs: TVM's scan launches kernels in a loop, which the emulator has not."""
    mod = import_exported_program(export_module(Cumsum(), [torch.zeros(2, 300, 40)]))
    mod = pipeline.run(mod, H100, dtype=dtype, until="schedule kernels")
    sums = [func.script() for name, func in mod.functions_items() if "cumsum" in name.name_hint]
    assert len(sums) == 2
    assert not any(dtype in script for script in sums)
