# SPDX-License-Identifier: Apache-2.0
"""Operators between channels last: no transposition is left, and the result is that of torch in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import tvm
from reference import relative_norm
from torch import Tensor, nn
from tvm import relax

from tvm_involution import lowering
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target

functional = nn.functional


class Between(nn.Module):
    """What is computed of channels first, between activations whose channels are last."""

    def __init__(self, body: object) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        rank = x.dim()
        result = self.body(x.permute(0, rank - 1, *range(1, rank - 1)))
        return result.permute(0, *range(2, result.dim()), 1)


def scaled(x: Tensor) -> Tensor:
    return (x + torch.relu(x)) * x.mean((2, 3), keepdim=True) + torch.arange(5.0)[:, None, None].to(x)


def means(x: Tensor) -> Tensor:
    return x.amax(1, keepdim=True) - x.mean((0, 2), keepdim=True) + x.sum((1, 3))[:, None, :, None]


SUNK = {
    "max": nn.MaxPool2d(3, 2, 1),
    "max 1d": nn.MaxPool1d(2),
    "average 3d": nn.AvgPool3d(2),
    "average": nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "adaptive": nn.AdaptiveAvgPool2d(3),
    "adaptive max": nn.AdaptiveMaxPool2d((4, 3)),
    "group": nn.GroupNorm(5, 5),
    "instance": nn.InstanceNorm2d(5, affine=True),
    "batch": nn.BatchNorm2d(5),
    "softmax": nn.Softmax(1),
    "steps": scaled,
    "sums": means,
    "reflection": nn.ReflectionPad2d((1, 2, 0, 3)),
    "zeros": nn.ConstantPad2d((1, 2, 0, 3), 0.5),
    "concatenated": lambda x: torch.cat([x, x.sigmoid()], 1),
    "sliced": lambda x: x[:, 1:4, 2:],
    "flipped": lambda x: x.flip(1),
    "resized": nn.Upsample(scale_factor=2, mode="bilinear"),
    "split": lambda x: x.reshape(x.shape[0], 5, 2, -1, x.shape[3]).amax(2),
}
# torch makes one picture of all before it norms each channel of each
SHAPES = {"instance": (1, 9, 7, 5), "max 1d": (2, 9, 5), "average 3d": (2, 4, 5, 6, 5), "split": (2, 6, 7, 5)}


def phase(module: nn.Module, x: Tensor, until: str | None) -> tvm.IRModule:
    return pipeline.run(import_exported_program(export_module(module, [x])), resolve_target("llvm"), until=until)


def transpositions(mod: tvm.IRModule) -> int:
    found = []

    def visit(node: relax.Expr) -> None:
        if isinstance(node, relax.Call) and getattr(node.op, "name", "") == "relax.permute_dims":
            found.append(node)

    relax.analysis.post_order_visit(mod["main"], visit)
    return len(found)


@pytest.mark.parametrize("name", SUNK)
def test_nothing_is_transposed(name):
    module = Between(SUNK[name]).eval()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(SHAPES.get(name, (2, 9, 7, 5)))
    # a tensor of channels or rows alone is turned at run time
    assert transpositions(phase(module, x, "lay out channels last")) == (1 if name == "sums" else 0)
    mod = phase(module, x, None)
    machine = relax.VirtualMachine(lowering.build(mod, resolve_target("llvm")), tvm.cpu())
    actual = machine["main"](tvm.runtime.tensor(x.numpy())).numpy()
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x.double()).numpy()
    assert actual.shape == expected.shape
    assert relative_norm(actual, expected) < 1e-5


@pytest.mark.parametrize(
    "body", [lambda x: x.flatten(1)[:, :, None], lambda x: x @ x.transpose(2, 3), lambda x: x + x.transpose(2, 3)]
)
def test_what_cannot_sink_stays(body):
    module, x = Between(body).eval(), torch.randn(2, 6, 6, 5)
    mod = phase(module, x, None)
    machine = relax.VirtualMachine(lowering.build(mod, resolve_target("llvm")), tvm.cpu())
    expected = module(x.double()).numpy()
    assert relative_norm(machine["main"](tvm.runtime.tensor(x.numpy())).numpy(), expected) < 1e-5
