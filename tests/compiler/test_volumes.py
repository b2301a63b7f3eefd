# SPDX-License-Identifier: Apache-2.0
"""Networks of 1-D and 3-D involutions, compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from programs import as_dtype
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.frontend.importer import import_exported_program
from tvm_involution.nn.build import init_weights
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.target import resolve_target


def volumes() -> nn.Module:
    """Every kind of convolution that a 3-D network of involutions has, channels that fill no pack."""
    model = nn.Sequential(
        nn.Conv3d(2, 24, 3, (1, 2, 2), 1, bias=False),
        nn.BatchNorm3d(24),
        nn.ReLU(),
        nn.MaxPool3d((1, 2, 2)),
        ti.nn.Involution3d(24, (3, 5, 3), (1, 2, 1), group_channels=12),
        nn.BatchNorm3d(24),
        nn.ReLU(),
        nn.Conv3d(24, 20, (1, 3, 2), padding=(0, 2, 1), dilation=(1, 2, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(20, 7),
    )
    init_weights(model)
    return model.eval()


def signals() -> nn.Module:
    model = nn.Sequential(
        nn.Conv1d(1, 32, 5, 2, 2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        ti.nn.Involution1d(32, 7, 2),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.AvgPool1d(3),
        nn.Flatten(),
        nn.Linear(32 * 13, 5),
    )
    init_weights(model)
    return model.eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("build", "size"), [(volumes, (2, 5, 18, 22)), (signals, (1, 157))])
def test_compiled_network_equals_the_module(rng, tmp_path, build, size, dtype):
    model = build()
    x = torch.from_numpy(rng.standard_normal((2, *size))).float()
    ti.compile((model, (x,)), dtype=dtype).save(tmp_path / "network.so")
    actual = ti.load(tmp_path / "network.so")(as_dtype(x.numpy(), dtype)).astype("float64")
    expected = model.double()(x.double()).detach().numpy()
    assert relative_norm(actual, expected) < {"float32": 1e-5, "bfloat16": 2e-2}[dtype]


@pytest.mark.parametrize("target", ["llvm", "nvidia/nvidia-a100"])
def test_rules_made_for_them_take_involutions_and_convolutions(target):
    resolved = resolve_target(target)
    program = torch.export.export(volumes(), (torch.zeros(1, 2, 4, 16, 16),))
    mod = pipeline.run(import_exported_program(program), resolved, until="schedule kernels")
    rules = {
        var.name_hint: str(func.attrs[RULE_ATTR])
        for var, func in mod.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc) and RULE_ATTR in (func.attrs or {})
    }
    involutions = {rule for name, rule in rules.items() if "involution3d" in name}
    convolutions = {rule for name, rule in rules.items() if "conv3d" in name}
    assert involutions == {"Involution"}
    assert convolutions <= ({"PackedGemm"} if target == "llvm" else {"TensorCoreGemm", "CudaCoreGemm"})
    assert len([name for name in rules if "conv3d" in name]) == 4
    # at the input alone: behind the last pooling there is one number a channel
    assert len([name for name in rules if "transpose" in name]) == 1, rules


def test_pictures_of_a_batch_stay_apart(rng, tmp_path):
    model = volumes()
    x = torch.from_numpy(rng.standard_normal((3, 2, 4, 16, 16))).float()
    ti.compile((model, (x[:1],)), batch=(1, 2)).save(tmp_path / "network.so")
    network = ti.load(tmp_path / "network.so")
    expected = np.concatenate([network(picture[None].numpy()) for picture in x])
    assert relative_norm(network(x.numpy()), expected) < 1e-6
