# SPDX-License-Identifier: Apache-2.0
"""On which axis the batch is, whether pictures stay apart, and what becomes of outputs that are not plain tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import relative_norm
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tvm_involution as ti
from tvm_involution.frontend.network import Network, resolve_network


class Lambda(nn.Module):
    """A function as a module, with a parameter and a buffer that it may use."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("count", torch.zeros(()))
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def load(tmp_path, function: Any, *inputs: Tensor, **arguments: Any) -> tuple[nn.Module, ti.CompiledNetwork]:
    module = Lambda(function).eval()
    ti.compile((module, inputs), **arguments).save(tmp_path / "net.so")
    return module, ti.load(tmp_path / "net.so")


def assert_equal(actual: Any, expected: Any) -> None:
    expected = [x for x in tree_leaves(expected) if x is not None]
    actual = actual if isinstance(actual, tuple) else (actual,)
    assert [tuple(a.shape) for a in actual] == [tuple(e.shape) for e in expected]
    for a, e in zip(actual, expected, strict=True):
        assert relative_norm(a.detach().numpy(), e.detach().numpy()) < 1e-5


def axes_of(function: Any, *inputs: Tensor, batches: tuple[int, ...] = (2,)):
    return Network("net", "unknown", "as given", module=Lambda(function).eval(), arguments=inputs).batch_axes(batches)


def test_a_mean_over_the_batch_is_one_for_the_batch(tmp_path, rng):
    module, net = load(tmp_path, lambda s, x: (x * 2, x.mean(0, keepdim=True)), torch.zeros(1, 3, 4, 4), batch=(1, 3))
    assert [spec.shape for spec in net.metadata.outputs] == [("batch", 3, 4, 4), (1, 3, 4, 4)]
    for batch in (1, 3):
        x = torch.randn(batch, 3, 4, 4)
        assert_equal(net(x), module(x))
    with pytest.raises(ti.UserError, match=r"takes batches of 1 or 3 alone, got 2; .*aten.mean.dim .*test_batch_axes"):
        net(torch.zeros(2, 3, 4, 4))


def test_an_output_a_picture(tmp_path, rng):
    class Unbound(torch.nn.Module):
        def forward(self, x: Tensor) -> Any:
            return x.unbind(0)

    ti.compile((Unbound(), torch.zeros(3, 2))).save(tmp_path / "unbound.so")
    network = ti.load(tmp_path / "unbound.so")
    x = torch.from_numpy(rng.standard_normal((3, 2)).astype("float32"))
    assert "number of its outputs" in network.metadata.mixed_by
    assert torch.equal(torch.stack(tuple(network(x))), x)


def test_weights_inputs_and_other_axes(tmp_path, rng):
    """A returned weight is neither cut nor repeated, a per-network input stays, the batch may be on any axis."""

    def function(s, x, scale):
        return x * scale, s.weight, x.transpose(0, 1) @ s.weight, x.flatten(0, 1), scale

    module, net = load(tmp_path, function, torch.zeros(2, 3, 4, 4), torch.zeros(1, 1, 1, 1), batch=(1, 4))
    assert [spec.shape for spec in net.metadata.inputs] == [("batch", 3, 4, 4), (1, 1, 1, 1)]
    assert [spec.shape for spec in net.metadata.outputs] == [
        ("batch", 3, 4, 4),
        (4, 4),
        (3, "batch", 4, 4),
        ("3*batch", 4, 4),
        (1, 1, 1, 1),
    ]
    for batch in (1, 3, 4, 6):
        x, scale = torch.randn(batch, 3, 4, 4), torch.randn(1, 1, 1, 1)
        assert_equal(net(x, scale), module(x, scale))


def test_the_first_tensor_does_not_decide_the_batch(tmp_path, rng):
    module, net = load(
        tmp_path, lambda s, k, x: x * k[:, None, None], torch.zeros(16), torch.zeros(2, 16, 3, 3), batch=3
    )
    assert [spec.shape for spec in net.metadata.inputs] == [(16,), ("batch", 16, 3, 3)]
    k, x = torch.randn(16), torch.randn(5, 16, 3, 3)
    assert_equal(net(k, x), module(k, x))


def test_a_network_for_one_batch_size_alone(tmp_path, rng):
    """No axis is called the batch where the network takes no other."""
    module, net = load(tmp_path, lambda s, x: x.reshape(2, 12) @ torch.ones(12, 2), torch.zeros(2, 3, 4))
    assert net.metadata.inputs[0].shape == (2, 3, 4)
    x = torch.randn(2, 3, 4)
    assert_equal(net(x), module(x))
    with pytest.raises(ti.UserError, match=r"must have shape \(2, 3, 4\), got \(1, 3, 4\)"):
        net(x[:1])


APART = {
    "pointwise": lambda s, x: torch.where(x > 0, x.sigmoid(), x.clone().relu_()) + s.weight[0],
    "views": lambda s, x: x.view(x.shape[0], 3, 16).permute(1, 0, 2).unsqueeze(0).squeeze(0).reshape(3, -1, 4, 4),
    "flattened": lambda s, x: nn.functional.linear(x.flatten(0, 1).flatten(0, 1), s.weight).view(x.shape),
    "convolution": lambda s, x: nn.functional.conv2d(x, torch.ones(2, 3, 3, 3), padding=1),
    "pooling": lambda s, x: nn.functional.interpolate(nn.functional.max_pool2d(x, 2), scale_factor=2.0),
    "norms": lambda s, x: nn.functional.layer_norm(nn.functional.group_norm(x, 3), (4,)),
    "sums": lambda s, x: (x.sum((1, 2)), x.softmax(-1), x.max(1).values, x.cumsum(2), x.flip(3)),
    "products": lambda s, x: (x @ x.mT, torch.einsum("nchw,wd->ndch", x, s.weight), x @ s.weight),
    "attention": lambda s, x: nn.functional.scaled_dot_product_attention(x, x, x),
    "tokens": lambda s, x: torch.cat([s.weight.expand(x.shape[0], -1, 4), x.flatten(1, 2)], 1),
    "filled": lambda s, x: torch.cat([x.new_zeros(x.shape[0], 1, 4, 4), x], 1),
    "indices": lambda s, x: (x[:, :, 1:3], x[:, [0, 2]], s.weight[(x[:, 0] > 0).long()], *x.split(1, 1)),
    "repeated": lambda s, x: x.repeat(1, 2, 1, 1),
}
MIXED = {
    "sum": lambda s, x: x - x.sum(0, keepdim=True),
    "all": lambda s, x: x / x.abs().max(),
    "softmax": lambda s, x: x.softmax(0),
    "flip": lambda s, x: x.flip(0),
    "cumsum": lambda s, x: x.cumsum(0),
    "a picture": lambda s, x: x - x[0],
    "size": lambda s, x: x / x.shape[0],
    "positions": lambda s, x: x + torch.arange(x.shape[0])[:, None, None, None],
    "filled with the size": lambda s, x: x + torch.full((x.shape[0], 1, 1, 1), float(x.shape[0])),
    "similarity": lambda s, x: x.flatten(1) @ x.flatten(1).mT,
    "minor": lambda s, x: x.transpose(0, 1).flatten(0, 1).view(x.shape),
    "repeated": lambda s, x: x.repeat(2, 1, 1, 1),
    "training": lambda s, x: nn.functional.batch_norm(x, None, None, training=True),
    "branch": lambda s, x: x if x.shape[0] == 2 else x + 1,
    "constants": lambda s, x: x * torch.tensor([[float(x.shape[0])]]),
}


@pytest.mark.parametrize("name", APART)
def test_operators_that_keep_pictures_apart(name, rng):
    axes = axes_of(APART[name], torch.zeros(2, 3, 4, 4))
    assert axes.mixed_by == ""
    # what "apart" promises: the outputs of a batch are those of its pictures, joined
    module, x = Lambda(APART[name]).eval(), torch.randn(3, 3, 4, 4)
    whole = tree_leaves(module(x))
    single = [tree_leaves(module(picture[None])) for picture in x]
    assert len(whole) == len(axes.outputs)
    for shape, expected, parts in zip(axes.outputs, whole, zip(*single, strict=True), strict=True):
        axis = next(i for i, d in enumerate(shape) if isinstance(d, str))
        assert torch.allclose(torch.cat(list(parts), axis), expected, atol=1e-5)


@pytest.mark.parametrize("name", MIXED)
def test_what_may_mix_pictures(name):
    assert axes_of(MIXED[name], torch.zeros(2, 3, 4, 4)).mixed_by


def test_the_zoo_keeps_pictures_apart():
    """Detectors with selection and all; at a size that exports quickly."""
    for name in ("rednet26", "mask_rcnn_rednet50_neck_head"):
        axes = resolve_network(name, image_size=(64, 64)).batch_axes((1,))
        assert axes.mixed_by == ""
        assert all(shape[0] == "batch" for shape in (*axes.inputs, *axes.outputs))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_program_exported_before(tmp_path, rng, batch):
    """Its other batch sizes cannot be traced, but are told from its operators."""

    def function(s, x):
        return x.flatten(1).view(x.shape[0], 3, 16).transpose(0, 1) * 2, s.weight

    module = Lambda(function).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(batch, 3, 4, 4),)), tmp_path / "net.pt2")
    ti.compile(tmp_path / "net.pt2").save(tmp_path / "net.so")
    net = ti.load(tmp_path / "net.so")
    assert [spec.shape for spec in net.metadata.outputs] == [(3, "batch", 16), (4, 4)]
    assert net.metadata.inputs[0].layout == ""
    x = torch.randn(3, 3, 4, 4)
    assert_equal(net(x), module(x))


def test_names_are_all_different(tmp_path, rng):
    _, net = load(
        tmp_path, lambda s, x: {"a": [x + 1, x + 2], "a_0": x + 3, "a_0_2": x + 4, "": x + 5}, torch.zeros(1, 3)
    )
    outputs = net.run(x := np.ones((1, 3), np.float32))
    assert {name: float(value[0, 0] - x[0, 0]) for name, value in outputs.items()} == {
        "a_0": 1,
        "a_1": 2,
        "a_0_3": 3,
        "a_0_2": 4,
        "output_": 5,
    }


def test_none_is_left_out(tmp_path, rng):
    module, net = load(tmp_path, lambda s, x: {"a": None, "b": (x * 2, None), "c": x * 3}, torch.zeros(1, 3))
    assert [spec.name for spec in net.metadata.outputs] == ["b_0", "c"]
    x = torch.randn(1, 3)
    assert_equal(net(x), module(x))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda s, x: (x, 3), "returns 3, which is no tensor"),
        (lambda s, x: (x, x.shape[0] / 2), "returns 0.5, which is no tensor"),
        (lambda s, x: None, "returns no tensor"),
    ],
)
def test_outputs_that_are_no_tensors(function, words):
    with pytest.raises(ti.UserError, match=words):
        ti.compile((Lambda(function), torch.zeros(1, 3)))


def test_scalars_and_aliases_have_memory_of_their_own(tmp_path, rng):
    """Who writes into an output changes neither an input nor what later calls return."""

    def function(s, x):
        return x, x.flatten(1), s.weight, s.weight.view(-1), torch.ones(3), x.sum((0, 1)), (x + 1)[:, None]

    module, net = load(tmp_path, function, torch.zeros(1, 3))
    x = torch.randn(1, 3)
    before = x.clone()
    for _ in range(2):
        outputs = net(x)
        assert_equal(outputs, module(before))
        for output in outputs:
            output.fill_(7)
    assert torch.equal(x, before)
    module, net = load(tmp_path, lambda s, x: x.view(1, 3, 1), torch.zeros(1, 3))
    net(x).fill_(7)
    assert torch.equal(x, before)


def counted(s, x):
    s.count += 1
    return x * s.count


def test_a_buffer_that_the_network_changes_is_named():
    with pytest.raises(
        ti.UserError, match=r"changes its buffer 'count' \(.*test_batch_axes.py:.*depend on what it held before"
    ) as e:
        ti.compile((Lambda(counted), torch.zeros(1, 3)))
    assert "\n" not in str(e.value)


def test_a_buffer_that_nothing_reads(tmp_path, rng):
    def function(s, x):
        s.count += 1
        return x * 2

    module, net = load(tmp_path, function, torch.zeros(1, 3))
    x = torch.randn(1, 3)
    assert_equal(net(x), module(x))


def test_an_input_that_the_network_changes(tmp_path, rng):
    """The result is torch's; the caller's array is left alone."""

    def function(s, x):
        x.add_(1)
        x[:, 0].mul_(3)
        return x * 2

    module, net = load(tmp_path, function, torch.zeros(1, 3))
    x = torch.randn(1, 3)
    before = x.clone()
    actual = net(x)
    assert torch.equal(x, before)
    assert_equal(actual, module(x.clone()))


def test_the_module_comes_back_unchanged():
    """Training flags part by part, dtype and parameters, whether or not it can be compiled."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.BatchNorm2d(4)).double().train()
    module[2].eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    resolve_network(module, image_size=(4, 4)).export(1)
    from tvm_involution.frontend.importer import export_module

    export_module(module, [torch.zeros(1, 3, 4, 4, dtype=torch.float64)])
    with pytest.raises(ti.UserError):
        export_module(module, [torch.zeros(1, 5, 4, 4, dtype=torch.float64)])
    assert [part.training for part in module.modules()] == [True, True, True, False]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_a_batch_of_none_is_no_batch(tmp_path):
    class Twice(torch.nn.Module):
        def forward(self, x):
            return x * 2, x.sum(0)

    x = torch.zeros(0, 3)
    ti.compile((Twice(), (x,))).save(tmp_path / "net.so")
    twice, total = ti.load(tmp_path / "net.so")(x)
    assert twice.shape == (0, 3) and torch.equal(total, torch.zeros(3))
