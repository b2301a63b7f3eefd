# SPDX-License-Identifier: Apache-2.0
"""Any network of a user's: several inputs and outputs, dictionaries and tuples, and what cannot be imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import user_networks
from command_line import TESTS
from reference import relative_norm
from torch import nn
from torch.utils._pytree import tree_leaves

import tvm_involution as ti
from tvm_involution.frontend.conversions import CONVERTERS
from tvm_involution.frontend.importer import export_module, import_exported_program

HERE = str(TESTS)


def assert_same(network: ti.CompiledNetwork, module: nn.Module, inputs: Any) -> None:
    """Compare with the module in float64."""
    arguments, keywords = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    double = [x.double() if x.is_floating_point() else x for x in tree_leaves(inputs)]
    restored = iter(double)
    arguments, keywords = torch.utils._pytree.tree_map(lambda _: next(restored), (arguments, keywords))
    with torch.no_grad():
        expected = tree_leaves(module.double()(*arguments, **keywords))
    actual = network(*(x.numpy() for x in tree_leaves(inputs)))
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert relative_norm(one, other.numpy()) < 1e-5
    module.float()


def test_several_inputs_and_a_dictionary_of_outputs(tmp_path, rng):
    module, inputs = user_networks.two_pictures()
    ti.compile((module, inputs), batch=(2, 3)).save(tmp_path / "net.so")
    network = ti.load(tmp_path / "net.so")
    assert [(spec.name, spec.shape) for spec in network.metadata.inputs] == [
        ("left", ("batch", 3, 8, 6)),
        ("right", ("batch", 3, 8, 6)),
        ("scale", (16,)),
    ]
    names = [spec.name for spec in network.metadata.outputs]
    assert names == ["features", "both_0", "both_1", "pair_total", "pair_parts_0", "pair_parts_1"]
    for batch in (2, 3, 4):
        assert_same(network, module, (*(torch.randn(batch, 3, 8, 6) for _ in range(2)), torch.randn(16)))
    with pytest.raises(ti.UserError, match=r"input 'scale' must have shape \(16\), got \(2, 16\)"):
        network(*(np.zeros((2, 3, 8, 6), np.float32) for _ in range(2)), np.zeros((2, 16), np.float32))


def test_arguments_by_name_and_an_output_for_the_whole_batch(tmp_path, rng, monkeypatch):
    monkeypatch.syspath_prepend(HERE)
    torch.manual_seed(3)
    ti.compile("user_networks:mapping").save(tmp_path / "net.so")
    torch.manual_seed(3)
    module, inputs = user_networks.mapping()
    network = ti.load(tmp_path / "net.so")
    assert [spec.dtype for spec in network.metadata.inputs] == ["int64", "float32", "float32"]
    assert [spec.shape for spec in network.metadata.outputs] == [("batch", 16, 5, 7), ()]
    assert_same(network, module, inputs)
    with pytest.raises(ti.UserError, match="takes batches of 2 alone, got 1"):
        network(*(x[:1].numpy() for x in tree_leaves(inputs)))


def test_exported_program_with_dictionaries(tmp_path, rng):
    module, keywords = user_networks.mapping()
    torch.export.save(torch.export.export(module, (), keywords), tmp_path / "net.pt2")
    ti.compile(tmp_path / "net.pt2").save(tmp_path / "net.so")
    assert_same(ti.load(tmp_path / "net.so"), module, keywords)


class Svd(nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.linalg.svdvals(y)


class Buried(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = nn.FractionalMaxPool2d(2, output_ratio=0.5)

    def forward(self, x):
        return self.pool(x)


class Complex(nn.Module):
    def forward(self, x):
        return torch.view_as_complex(x.reshape(-1, 2)).real


@pytest.mark.parametrize(
    ("module", "operator", "line"),
    [
        (Svd, "svd", "return torch.linalg.svdvals(y)"),
        (Buried, "fractional_max_pool2d", "return self.pool(x)"),
        (Complex, "complex", "return torch.view_as_complex(x.reshape(-1, 2)).real"),
    ],
)
def test_what_cannot_be_imported_is_named_with_its_line(module, operator, line):
    with pytest.raises(ti.UserError) as error:
        import_exported_program(export_module(module(), [torch.randn(1, 1, 4, 4)]))
    message = str(error.value)
    assert operator in message and f"{__file__}:" in message and line in message and "\n" not in message


def test_a_converter_that_fails_is_named_with_its_line(monkeypatch):
    class Exploding(nn.Module):
        def forward(self, x):
            return x.amax(1)

    def explode(*_):
        raise IndexError("list index out of range")

    monkeypatch.setitem(CONVERTERS, "amax.default", explode)
    with pytest.raises(ti.UserError, match=r"amax.*: list index out of range \(.*: return x.amax\(1\)\)"):
        import_exported_program(export_module(Exploding(), [torch.randn(1, 1, 4, 4)]))


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ((nn.ReLU(), [3]), {}, "must be tensors, got int"),
        ((nn.ReLU(), torch.zeros(1, 2)), {"image_size": (8, 8)}, "leave out --image-size"),
        (nn.ReLU(), {}, r"give example inputs beside the module: \(module, inputs\)"),
        ((nn.ReLU(), 1, 2), {}, r"is tuple; expected a torch.nn.Module, or \(module, example inputs\)"),
    ],
)
def test_inputs_that_cannot_be_told(model, arguments, words):
    with pytest.raises(ti.UserError, match=words):
        ti.compile(model, **arguments)


def test_bench_takes_several_inputs_and_dictionaries(tmp_path, monkeypatch):
    """Indices are whole numbers below two."""
    from tvm_involution.bench.compare import compare
    from tvm_involution.bench.contenders import PEERS
    from tvm_involution.bench.effort import Effort
    from tvm_involution.bench.subject import Subject

    monkeypatch.setenv("PYTHONPATH", HERE)
    monkeypatch.syspath_prepend(HERE)
    torch_peer = [peer for peer in PEERS if peer.name == "torch"]
    comparison = compare([Subject("user_networks:two_pictures", 1)], torch_peer, Effort(1, 1))
    assert [result.failure for result in comparison.results] == [None, None]
    assert all(result.relative_error < 1e-4 for result in comparison.results)
