# SPDX-License-Identifier: Apache-2.0
"""Local attention in a compiled network: one kernel by its own rule, channels last, against attention of all pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import tvm
from attentions import full_attention
from reference import relative_norm
from torch import nn
from tvm import relax, s_tir, tirx
from tvm_ffi import structural_walk

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.operators.local_attention import column_lanes
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.target import resolve_target


class Attention(nn.Module):
    """The operator between convolutions and a residual; 2 heads, a window of 3x5."""

    def __init__(self, border: str = "masked", positions: bool = True, dilation: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.border, self.dilation = border, dilation
        self.inputs = nn.ModuleList(nn.Conv2d(3, channels, 1) for channels in (8, 8, 12))
        sides = (5, 9) if border == "shifted" else (3, 5)
        self.bias = nn.Parameter(torch.randn(2, *sides)) if positions else None
        self.embedding = nn.Parameter(torch.randn(8, 3, 5)) if positions and border != "shifted" else None

    def forward(self, x):
        query, key, value = (layer(x) for layer in self.inputs)
        positions = (self.bias, self.embedding)
        out = ti.nn.local_attention2d(query, key, value, (3, 5), 2, self.dilation, 0.4, *positions, self.border)
        return torch.relu(out + value)

    def expected(self, x) -> np.ndarray:
        query, key, value = (layer(x).detach().numpy() for layer in self.double().inputs)
        positions = (None if x is None else x.detach().numpy() for x in (self.bias, self.embedding))
        out = full_attention(query, key, value, (3, 5), 2, self.dilation, 0.4, *positions, self.border)
        return np.maximum(out + value, 0)


@pytest.mark.parametrize(("border", "dtype"), [("masked", "float32"), ("shifted", "bfloat16"), ("zeros", "float16")])
def test_compiled(rng, tmp_path, border, dtype):
    module = Attention(border, dilation=(2, 1) if border == "masked" else (1, 1)).eval()
    x = rng.standard_normal((2, 3, 7, 9)).astype("float32")
    ti.compile((module, (torch.from_numpy(x),)), dtype=dtype).save(tmp_path / "attention.so")
    network = ti.load(tmp_path / "attention.so")
    actual = network(torch.from_numpy(x).to(getattr(torch, dtype))).double().numpy()
    expected = module.expected(torch.from_numpy(x).double())
    assert relative_norm(actual, expected) < (1e-5 if dtype == "float32" else 2e-2)


def test_one_program_that_writes_neither_windows_nor_weights():
    """What it takes memory for are keys and values with their borders, and one row's weights."""
    module = Attention().eval()
    mod = import_exported_program(export_module(module, (torch.zeros(1, 3, 40, 40),)))
    mod = pipeline.run(mod, resolve_target("llvm"), until="schedule kernels")
    programs = [f for _, f in mod.functions_items() if isinstance(f, tirx.PrimFunc)]
    assert sorted(str(f.attrs[RULE_ATTR]) for f in programs if str(f.attrs[RULE_ATTR]) != "Elementwise") == [
        "LocalAttention",
        "PackedGemm",
        "PackedGemm",
    ]
    lowered = tvm.IRModule({"main": next(f for f in programs if str(f.attrs[RULE_ATTR]) == "LocalAttention")})
    steps = s_tir.transform
    for step in (
        steps.LowerInitBlock,
        steps.PlanAndUpdateBufferAllocationLocation,
        steps.ConvertBlocksToOpaque,
        steps.CompactBufferAllocation,
    ):
        lowered = step()(lowered)
    blocks: list[s_tir.SBlock] = []
    structural_walk(lowered["main"].body, (s_tir.SBlock, blocks.append))
    sizes = {b.name: math.prod(int(d) for d in b.shape) for block in blocks for b in block.alloc_buffers}
    # rows are filled up to whole vectors
    assert sizes.pop("keys") <= 42 * 8 * 52 and sizes.pop("pad_temp") == 42 * 44 * 12
    assert max(sizes.values()) <= 15 * 48


def test_stays_channels_last():
    module = import_exported_program(export_module(Attention().eval(), (torch.zeros(1, 3, 6, 7),)))
    mod = pipeline.run(module, resolve_target("llvm"), until="lay out channels last")
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings if isinstance(b.value, relax.Call)]
    (attention,) = (call for call in calls if call.op.name == "tvm_involution.local_attention2d")
    assert str(attention.attrs["layout"]) == "NHWC"
    moved = [call.args[0] for call in calls if call.op.name == "relax.permute_dims"]
    # the input for each of its readers, and the output
    assert sum(x not in list(mod["main"].params) for x in moved) == 1


def test_no_vector_is_half_empty():
    target = resolve_target('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "skylake-avx512"}')
    assert [column_lanes(target, columns) for columns in (56, 9, 8, 5, 1)] == [16, 16, 8, 8, 1]
    assert column_lanes(None, 56) == 1
