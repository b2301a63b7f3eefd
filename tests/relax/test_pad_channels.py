# SPDX-License-Identifier: Apache-2.0
"""Convolutions of pictures get a fourth channel of zeros on GPUs; others stay as they are."""

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


def target(architecture: str):
    return resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize(
    ("module", "shape", "dtype", "architecture"),
    [
        (nn.Conv2d(3, 32, 3, 2, 1), (2, 3, 15, 13), "float16", "sm_90a"),
        (nn.Conv2d(1, 24, 3, 1, 2, 2), (2, 1, 9, 7), "bfloat16", "sm_80"),
        (nn.Conv2d(3, 20, 5, 1, 2), (1, 3, 8, 11), "float32", "sm_80"),
    ],
    ids=str,
)
def test_pictures(rng, module, shape, dtype, architecture):
    x = rng.standard_normal(shape).astype("float32")
    actual = run_emulated(module.float(), x, target(architecture), dtype)
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x.astype(np.float64))).numpy()
    assert relative_norm(actual, expected) < TOLERANCE[dtype]


def channels_read(module: nn.Module, shape: tuple[int, ...], name: str) -> set[int]:
    mod = import_exported_program(export_module(module.eval(), [torch.zeros(shape)]))
    own = target("sm_80") if name == "cuda" else resolve_target(name)
    mod = pipeline.run(mod, own, dtype="float16" if name == "cuda" else "float32", until="lower operators")
    programs = [func for name, func in mod.functions_items() if "conv2d" in name.name_hint]
    return {int(func.params[0].shape[-1]) for func in programs} | {int(func.params[1].shape[-1]) for func in programs}


def test_which():
    assert 4 in channels_read(nn.Conv2d(3, 32, 3), (2, 3, 9, 9), "cuda")
    assert 4 not in channels_read(nn.Conv2d(3, 32, 1), (2, 3, 9, 9), "cuda")
    assert 5 in channels_read(nn.Conv2d(5, 32, 3), (2, 5, 9, 9), "cuda")
    # what is no transposition could not write the zeros
    inner = nn.Sequential(nn.Conv2d(8, 3, 3), nn.Conv2d(3, 32, 3))
    assert 3 in channels_read(inner, (2, 8, 9, 9), "cuda")
    assert 3 in channels_read(nn.Conv2d(3, 32, 3), (2, 3, 9, 9), "llvm")
