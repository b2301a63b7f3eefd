# SPDX-License-Identifier: Apache-2.0
"""What follows a sum elementwise is computed on its tile, however often it reads the sum, by the rule of the sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from reference import relative_norm
from torch import nn
from tvm import s_tir, te, tirx, topi

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.schedules.rule import fuse_epilogue, fuse_or_copy
from tvm_involution.target import resolve_target

ACTIVATIONS = {
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
}
RULES = ["PackedGemm", "Winograd", "Strassen", "Involution"]


class Network(nn.Module):
    """A product, Winograd's and Strassen's algorithm and an involution, each with an activation behind it."""

    def __init__(self, activation: nn.Module):
        super().__init__()
        self.stride = nn.Conv2d(24, 64, 3, stride=2, padding=1)
        self.winograd = nn.Conv2d(64, 64, 3, padding=1)
        self.strassen = nn.Conv2d(64, 128, 1)
        self.kernel = nn.Conv2d(128, 9 * 8, 1)
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.stride(x))
        x = self.activation(self.winograd(x))
        x = self.activation(self.strassen(x))
        kernel = self.kernel(x).unflatten(1, (8, 3, 3))
        return self.activation(ti.nn.involution2d(x, kernel, stride=1, padding=1, dilation=1))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_epilogues(rng, name):
    module = Network(ACTIVATIONS[name]()).eval()
    x = torch.from_numpy(rng.standard_normal((2, 24, 28, 28), np.float32))
    mod = import_exported_program(export_module(module, [x]))
    mod = pipeline.run(mod, resolve_target("llvm"), until="schedule kernels")
    rules = [str(f.attrs[RULE_ATTR]) for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]
    # the kernel's convolution is a product without an activation; the two transpositions are of input and output
    assert sorted(rules) == sorted([*RULES, "PackedGemm", "Elementwise", "Elementwise"])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_right(rng, tmp_path, name):
    module = Network(ACTIVATIONS[name]()).eval()
    x = torch.from_numpy(rng.standard_normal((2, 24, 28, 28), np.float32))
    ti.compile((module, x)).save(tmp_path / "network.so")
    with torch.no_grad():
        expected = module.double()(x.double()).numpy()
    assert relative_norm(ti.load(tmp_path / "network.so")(x.numpy()), expected) < 1e-5


def sums_with(*following) -> tuple[s_tir.Schedule, s_tir.schedule.SBlockRV]:
    x = te.placeholder((8, 16), "float32", name="x")
    k = te.reduce_axis((0, 16), "k")
    sums = te.compute((8,), lambda i: te.sum(x[i, k], axis=k), name="sums")
    func = te.create_prim_func([x, *(f(sums) for f in following)])
    sch = s_tir.Schedule(func)
    return sch, sch.get_sblock("sums")


def test_a_diamond_becomes_one_block():
    sch, sums = sums_with(lambda s: topi.add(topi.multiply(s, topi.sigmoid(s)), topi.exp(s)))
    epilogue = fuse_epilogue(sch, sums)
    assert epilogue is not None and not sch.get_consumers(epilogue)
    assert len(sch.get_child_blocks(sch.get_sblock("root"))) == 2


def test_nothing_follows():
    sch, sums = sums_with(lambda s: s)
    assert fuse_epilogue(sch, sums) is sums
    copy = fuse_or_copy(sch, sums)
    assert copy is not None and copy is not sums


@pytest.mark.parametrize("following", [(topi.exp, topi.sigmoid), (lambda s: topi.sum(s, 0),)], ids=["two", "sum"])
def test_what_is_no_epilogue(following):
    sch, sums = sums_with(*following)
    before = sch.mod["main"]
    assert fuse_epilogue(sch, sums) is None
    tvm.ir.assert_structural_equal(sch.mod["main"], before)
