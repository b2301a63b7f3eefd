# SPDX-License-Identifier: Apache-2.0
"""What half types are rounded to, and where."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import relative_norm
from torch import nn
from torch.nn import functional as F
from tvm import relax

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.constants import constant
from tvm_involution.relax.dtypes import tensor_dtype
from tvm_involution.target import resolve_target


def lowered(module: nn.Module, *inputs: torch.Tensor, dtype: str):
    """Return the module that is scheduled next, and name and output type of every program that it calls."""
    mod = import_exported_program(export_module(module, inputs))
    mod = pipeline.run(mod, resolve_target("llvm"), dtype=dtype, until="lower operators")
    bindings = [binding for block in mod["main"].body.blocks for binding in block.bindings]
    calls = [binding for binding in bindings if isinstance(binding.value, relax.Call)]
    return mod, [(call.value.args[0].name_hint, tensor_dtype(call.var.ty)) for call in calls]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(32, 64, 1), nn.Linear(64, 10)

    def forward(self, x):
        return self.fc((self.conv(x).relu() + x.sum(1, keepdim=True)).relu().mean((2, 3)))


class Attention(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.transpose(1, 2) * 0.125).softmax(-1) @ v


def test_the_epilogue_of_a_packed_product_is_not_widened():
    """Also where a mean reads it, in float32."""
    mod, programs = lowered(Classifier(), torch.zeros(1, 32, 6, 5), dtype="bfloat16")
    (name,) = (name for name, _ in programs if "conv2d" in name)
    sums = [str(buffer.dtype) for buffer in mod[name].body.block.alloc_buffers if "add" in buffer.name]
    assert sums == ["bfloat16", "bfloat16"]


def test_scores_of_an_attention_are_never_rounded():
    inputs = [torch.zeros(1, 8, 64)] * 3
    _, programs = lowered(Attention(), *inputs, dtype="float16")
    assert [dtype for name, dtype in programs if "softmax" in name or "matmul" in name] == [
        "float32",
        "float32",
        "float16",
    ]


class Gained(nn.Module):
    """A convolution whose weight is computed of others."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(8, 3, 1, 1)), nn.Parameter(torch.rand(8, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.gain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_computed_of_weights_is_computed_once(dtype):
    _, programs = lowered(Gained(), torch.zeros(1, 3, 8, 7), dtype=dtype)
    assert not any("multiply" in name for name, _ in programs)


def test_a_finite_number_stays_finite():
    values = np.array([-1e9, 1e9, 1.5, np.inf, -np.inf])
    assert constant(values, "float16").value.numpy().tolist() == [-65504, 65504, 1.5, np.inf, -np.inf]
    assert np.isfinite(constant(np.array(np.finfo("float32").min), "bfloat16").value.numpy().astype("float32"))


class Sections(nn.Module):
    """A linear layer in the half type, a product that its author wants in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 8)

    def forward(self, x):
        y = self.fc(x)
        wide = y.float() * 1.001
        return y, wide


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_a_half_type_is_compiled_in_it(dtype, tmp_path, rng):
    module, x = Sections().eval().to(dtype), torch.randn(3, 16).to(dtype)
    program = export_module(module, [x])
    torch.export.save(program, tmp_path / "net.pt2")
    with torch.no_grad():
        expected = module.double()(x.double())
    for name, model in {"module": (module.to(dtype), x), "file": tmp_path / "net.pt2"}.items():
        ti.compile(model).save(tmp_path / f"{name}.so")
        network = ti.load(tmp_path / f"{name}.so")
        y, wide = network(x)
        assert (y.dtype, wide.dtype) == (dtype, torch.float32)
        assert network.metadata.dtype == str(dtype).removeprefix("torch.")
        assert relative_norm(y.double().numpy(), expected[0].numpy()) < 1e-2
        assert relative_norm(wide.numpy(), y.float().numpy() * np.float32(1.001)) < 1e-6


class Mixed(nn.Module):
    def forward(self, x, y):
        return x.float() + y.float()


def test_two_half_types_are_refused():
    inputs = torch.zeros(2, 3, dtype=torch.float16), torch.zeros(2, 3, dtype=torch.bfloat16)
    with pytest.raises(ti.UserError, match="one half type"):
        ti.compile((Mixed(), inputs))
