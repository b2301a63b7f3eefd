# SPDX-License-Identifier: Apache-2.0
"""Each pass alone."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from reference import relative_norm
from torch import nn
from tvm import relax, tirx

from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR, count_kernels
from tvm_involution.relax.passes.fold_batch_norm import FoldBatchNorm
from tvm_involution.relax.passes.fold_views import FoldViews
from tvm_involution.target import resolve_target


def randomized(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return module.eval()


def imported(module: nn.Module, x: torch.Tensor):
    return relax.transform.Normalize()(import_exported_program(export_module(module, [x])))


class Shared(nn.Module):
    """A convolution whose output is used beside its batch norm, so it must not be folded away."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) * y


class PoolThenNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.bn = nn.MaxPool2d(2), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.pool(x))


@pytest.mark.parametrize(
    ("make", "operators"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 2),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)), 2),
        (Shared, None),
        (PoolThenNorm, 3),
    ],
    ids=["bias", "no bias", "shared", "no convolution"],
)
def test_fold_batch_norm(rng, make, operators):
    import tvm

    module, x = randomized(make()), torch.randn(2, 3, 8, 9)
    mod = relax.transform.CanonicalizeBindings()(FoldBatchNorm()(imported(module, x)))
    mod = relax.transform.DeadCodeElimination()(mod)
    assert "batch_norm" not in mod.script()
    calls = []
    relax.analysis.post_order_visit(
        mod["main"], lambda e: calls.append(e) if isinstance(e, relax.Call) and hasattr(e.op, "name") else None
    )
    if operators is not None:
        assert len(calls) == operators
    vm = relax.VirtualMachine(tvm.compile(mod, target="llvm"), tvm.cpu())
    actual = vm["main"](tvm.runtime.tensor(x.numpy())).numpy()
    with torch.no_grad():
        expected = module.double()(x.double()).numpy()
    assert relative_norm(actual, expected) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fold_views(dtype):
    values = relax.const(torch.arange(6.0).numpy(), dtype)
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 3, 2), dtype))
    with builder.function("main", [x]):
        with builder.dataflow():
            matrix = builder.emit(relax.op.permute_dims(builder.emit(relax.op.reshape(values, (2, 3)))))
            result = builder.emit_output(relax.op.add(x, builder.emit(relax.op.broadcast_to(matrix, (4, 3, 2)))))
        builder.emit_func_output(result)
    folded = relax.transform.CanonicalizeBindings()(FoldViews()(builder.finalize()))
    folded = relax.transform.DeadCodeElimination()(folded)
    (binding,) = folded["main"].body.blocks[0].bindings
    constant = binding.value.args[1].value.numpy().astype("float32")
    assert binding.value.op.name == "relax.add"
    assert constant.tolist() == [[[0, 3], [1, 4], [2, 5]]] * 4


@pytest.mark.parametrize("target", ["llvm", '{"kind": "llvm", "mcpu": "haswell"}', "nvidia/nvidia-h100"])
def test_every_kernel_of_a_rednet_gets_a_rule(target):
    from conftest import tiny_rednet

    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 64, 48)]))
    scheduled = pipeline.run(mod, resolve_target(target), until="schedule kernels")
    kernels = count_kernels(scheduled)
    assert kernels.total > 20
    assert kernels.fallback == 0
    assert sum(kernels.by_rule.values()) == kernels.rule
    rules = {
        name.name_hint: str(func.attrs[RULE_ATTR])
        for name, func in scheduled.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    assert kernels.by_rule == Counter(rules.values())
    if target == "llvm":
        assert {rule for name, rule in rules.items() if "involution2d" in name} == {"Involution"}
        assert {rule for name, rule in rules.items() if "conv2d" in name} == {"PackedGemm", "Strassen", "Winograd"}


@pytest.mark.parametrize("model", ["rednet_photos", "rednet26"])
def test_involutions_of_half_types_run_on_tensor_cores(model):
    """Of windows of 3 and of 7, at the networks' own sizes: a rule that trips would leave them to a slower one."""
    network = resolve_network(model)
    mod = pipeline.run(
        import_exported_program(network.export(1)),
        resolve_target("nvidia/nvidia-h100"),
        dtype="float16",
        until="schedule kernels",
    )
    rules = {str(func.attrs[RULE_ATTR]) for name, func in mod.functions_items() if "involution" in name.name_hint}
    assert rules == {"TensorCoreInvolution"} and count_kernels(mod).fallback == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_convert_dtype_reaches_inputs_weights_and_outputs(dtype):
    from conftest import tiny_rednet

    mod = import_exported_program(export_module(tiny_rednet(), [torch.zeros(1, 3, 32, 32)]))
    mod = pipeline.run(mod, resolve_target("llvm"), dtype=dtype, until="lay out channels last")
    assert 'dtype="float32"' not in mod["main"].script()
    assert str(mod["main"].params[0].ty.dtype) == dtype


def test_phases_are_listed_once():
    names = [name for name, _ in pipeline.phases(resolve_target("llvm"))]
    assert len(names) == len(set(names)) == 5
    assert all(passes for _, passes in pipeline.phases(resolve_target("llvm")))
