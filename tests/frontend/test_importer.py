# SPDX-License-Identifier: Apache-2.0
"""Importing from PyTorch: the operator stays whole, however the involution was written."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_rednet
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.operators import involution as operator
from tvm_involution.target import resolve_target


class NaiveInvolution(nn.Module):
    """Involution as the official repository writes it without its CUDA kernel: unfold, multiply, sum."""

    def __init__(self, channels: int, kernel_size: int, stride: int, swapped: bool = False) -> None:
        super().__init__()
        self.kernel_size, self.groups, self.swapped = kernel_size, channels // 16, swapped
        self.conv1 = nn.Sequential(nn.Conv2d(channels, channels // 4, 1), nn.BatchNorm2d(channels // 4), nn.ReLU())
        self.conv2 = nn.Conv2d(channels // 4, kernel_size**2 * self.groups, 1)
        self.pool = nn.AvgPool2d(stride, stride) if stride > 1 else nn.Identity()
        self.unfold = nn.Unfold(kernel_size, 1, (kernel_size - 1) // 2, stride)

    def forward(self, x):
        weight = self.conv2(self.conv1(self.pool(x)))
        b, _, h, w = weight.shape
        weight = weight.view(b, self.groups, self.kernel_size**2, h, w).unsqueeze(2)
        out = self.unfold(x).view(b, self.groups, 16, self.kernel_size**2, h, w)
        product = out * weight if self.swapped else weight * out
        return product.sum(dim=3).view(b, x.shape[1], h, w)


class GroupedUse(nn.Module):
    """A naive involution whose grouped sum is used as it is, without the last view."""

    def forward(self, x, weight):
        b, _, h, w = weight.shape
        kernel = weight.view(b, 2, 9, h, w).unsqueeze(2)
        windows = nn.functional.unfold(x, 3, padding=1).view(b, 2, 4, 9, h, w)
        return (kernel * windows).sum(3).relu()


def count_involutions(module: nn.Module, *inputs: torch.Tensor) -> int:
    mod = import_exported_program(export_module(module, inputs))
    return mod.script().count(operator.OP_NAME)


def test_custom_operator_stays_whole():
    assert count_involutions(tiny_rednet(), torch.zeros(1, 3, 32, 32)) == 5


@pytest.mark.parametrize(("kernel_size", "stride", "swapped"), [(3, 1, False), (7, 1, True), (5, 2, False)])
def test_naive_form_is_recognised_and_computes_the_same(tmp_path, rng, kernel_size, stride, swapped):
    module = NaiveInvolution(32, kernel_size, stride, swapped).eval()
    x = torch.randn(2, 32, 12, 8)
    assert count_involutions(module, x) == 1
    # the first layer's weight tells the compiler the channels, so a plain convolution in front of it is enough
    program = torch.export.export(module, (x,))
    torch.export.save(program, tmp_path / "naive.pt2")
    ti.compile(tmp_path / "naive.pt2").save(tmp_path / "naive.so")
    with torch.no_grad():
        expected = module.double()(x.double())
    actual = ti.load(tmp_path / "naive.so")(x)
    assert relative_norm(actual.numpy(), expected.numpy()) < 1e-5


def test_naive_form_used_grouped():
    x, weight = torch.randn(1, 8, 5, 5), torch.randn(1, 18, 5, 5)
    assert count_involutions(GroupedUse(), x, weight) == 1


def test_unsupported_operator_is_named_with_its_line():
    class Strange(nn.Module):
        def forward(self, x):
            return torch.linalg.svdvals(x)

    with pytest.raises(ti.UserError) as error:
        import_exported_program(export_module(Strange(), [torch.randn(1, 1, 4, 4)]))
    assert "svd" in str(error.value)
    assert "\n" not in str(error.value)


def test_untraceable_module_is_one_line():
    class Untraceable(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ti.UserError, match=r"torch\.export cannot trace Untraceable"):
        export_module(Untraceable(), [torch.randn(1, 1, 4, 4)])


def test_lowered_rednet_has_no_stray_operators():
    """One layout change at the input; batch norms gone; weights packed: nothing but the kernels we meant."""
    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 32, 32)]))
    lowered = pipeline.run(mod, resolve_target("llvm"), until="lower operators")
    names = {name.name_hint for name in lowered.get_global_vars()}
    assert not [n for n in names if "batch_norm" in n or "reshape" in n]
    assert len([n for n in names if "transpose" in n or "permute" in n]) <= 1
    assert len([n for n in names if "involution2d" in n]) == 5


def test_debug_dump_writes_every_phase(tmp_path):
    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 32, 32)]))
    pipeline.run(mod, resolve_target("llvm"), debug_dump=tmp_path)
    assert [p.name[0] for p in sorted(tmp_path.iterdir())] == ["0", "1", "2", "3", "4", "5"]
