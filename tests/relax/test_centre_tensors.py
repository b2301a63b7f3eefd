# SPDX-License-Identifier: Apache-2.0
"""Tensors in the middle of the memory that they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from conftest import tiny_rednet
from reference import relative_norm
from torch import nn
from tvm import te, topi

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes import centre_tensors
from tvm_involution.target import resolve_target


def placements(module: nn.Module, target: str) -> list[tuple[int, int, int]]:
    """Return (bytes of the memory, offset, bytes of the tensor) of all planned tensors."""
    mod = import_exported_program(export_module(module.eval(), [torch.zeros(1, 3, 40, 32)]))
    mod = pipeline.run(mod, resolve_target(target))
    storages, found = {}, []
    for block in mod["main"].body.blocks:
        for binding in block.bindings:
            name = getattr(getattr(binding.value, "op", None), "name", "")
            if name == "relax.vm.alloc_storage":
                storages[binding.var] = int(binding.value.args[0].values[0])
            elif name == "relax.vm.alloc_tensor":
                storage, offset, shape = binding.value.args[:3]
                size = int(np.prod([int(d) for d in shape.values])) * 4
                found.append((storages[storage], int(offset), size))
    return found


def test_tensors_lie_in_the_middle():
    found = placements(tiny_rednet(), "llvm")
    inner = found[:-1]
    assert len({space for space, _, _ in inner}) < len(inner), "nothing is shared"
    assert any(offset for _, offset, _ in inner)
    for space, offset, size in inner:
        assert offset % 64 == 0 and 0 <= space - size - 2 * offset < 128
    assert found[-1][1] == 0, "the caller's result begins at its first byte"


def test_gpus_go_without():
    assert not any(offset for _, offset, _ in placements(tiny_rednet(), "nvidia/nvidia-h100"))


class Sorted(nn.Module):
    """Numbers and their order, which TVM's packed function writes, in the memory of those of a larger feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 5))

    def forward(self, x):
        larger = self.layers[:2](x)
        sorted_larger = larger.flatten(1).sort(1).values.view_as(larger)
        return self.layers[2:](sorted_larger).flatten(1).sort(1).values * 2


def test_packed_functions_find_their_numbers(tmp_path, rng, monkeypatch):
    module = Sorted().eval()
    left_alone = sum(offset == 0 for _, offset, _ in placements(module, "llvm"))
    with monkeypatch.context() as everywhere:
        everywhere.setattr(centre_tensors, "_is_own", lambda func: True)
        assert sum(offset == 0 for _, offset, _ in placements(module, "llvm")) < left_alone
    ti.compile(module, image_size=(20, 17)).save(tmp_path / "net.so")
    x = rng.standard_normal((1, 3, 20, 17)).astype("float32")
    with torch.no_grad():
        expected = module.double()(torch.from_numpy(x).double()).numpy()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5


@pytest.mark.parametrize("offset", [0, 64, 192])
def test_kernels_take_offsets(rng, offset):
    x = te.placeholder((5, 32), "float32", "x")
    func = te.create_prim_func([x, topi.nn.relu(x)]).with_attr("global_symbol", "main")
    library = lowering.build(func, resolve_target("llvm"))
    view = tvm.get_global_func("runtime.TVMTensorCreateView")
    whole = rng.standard_normal(1024).astype("float32")
    result = tvm.runtime.tensor(np.zeros(1024, "float32"))
    shape = tvm.runtime.ShapeTuple([5, 32])
    dtype = tvm.DataType("float32")
    library["main"](view(tvm.runtime.tensor(whole), shape, dtype, offset), view(result, shape, dtype, 64))
    expected = np.zeros_like(whole)
    expected[16:176] = np.maximum(whole[offset // 4 :][:160], 0)
    np.testing.assert_array_equal(result.numpy(), expected)
