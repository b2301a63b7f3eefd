# SPDX-License-Identifier: Apache-2.0
"""Convolutions of every kind through the whole compilation, with their rules, against torch in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import tvm
from reference import relative_norm
from torch import nn
from tvm import relax

from tvm_involution import lowering
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.target import resolve_target


def compiled(module: nn.Module, x: torch.Tensor) -> tuple[np.ndarray, list[str]]:
    """Return what the compiled module computes of x, and the rules of its kernels."""
    target = resolve_target("llvm")
    mod = pipeline.run(import_exported_program(export_module(module, [x])), target)
    functions = [func for _, func in mod.functions_items() if isinstance(func, tvm.tirx.PrimFunc)]
    machine = relax.VirtualMachine(lowering.build(mod, target), tvm.cpu())
    result = machine["main"](tvm.runtime.tensor(x.numpy())).numpy()
    return result, [str(func.attrs[RULE_ATTR]) for func in functions]


def check(module: nn.Module, x: torch.Tensor) -> list[str]:
    module = module.eval()
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(x.double()).numpy()
    actual, rules = compiled(module, x)
    assert actual.shape == expected.shape
    assert relative_norm(actual, expected) < 1e-5
    return rules


# inputs, outputs, kernel, stride, padding, output padding; batch, height, width
TRANSPOSED = [
    ((8, 5, 4, 2, 1), (2, 7, 9)),
    ((3, 4, 3, 2, 1, 1), (1, 6, 5)),
    ((4, 6, 3, 2, 1), (1, 5, 8)),
    ((3, 3, 5, 3, 2, 2), (1, 4, 7)),
    ((4, 4, 2, 3, 0), (1, 4, 5)),
    ((3, 4, (3, 5), (1, 2), (0, 3), (0, 1)), (2, 5, 6)),
    ((6, 8, 4, 1, 0), (1, 1, 1)),
    ((3, 4, 3, 1, 1), (1, 6, 7)),
    ((20, 18, 4, 2, 1), (1, 18, 17)),
]


@pytest.mark.parametrize(("arguments", "size"), TRANSPOSED, ids=str)
def test_transposed(rng, arguments, size):
    module = nn.Sequential(nn.ConvTranspose2d(*arguments), nn.SiLU())
    x = torch.from_numpy(rng.standard_normal((size[0], arguments[0], *size[1:]), np.float32))
    assert "Reduction" not in check(module, x)


@pytest.mark.parametrize(
    ("kernel", "outputs", "count"), [((3, 2, 1, 1), 32, 4), ((4, 2, 1), 32, 4), ((2, 2), 32, 1), ((4, 2, 1), 3, 1)]
)
def test_offsets_that_see_the_same_inputs_are_one_convolution(rng, kernel, outputs, count):
    x = torch.from_numpy(rng.standard_normal((2, 16, 5, 6), np.float32))
    assert check(nn.ConvTranspose2d(16, outputs, *kernel), x).count("PackedGemm") == count


def test_transposed_with_more_padding_than_kernel(rng):
    """That no convolution does: TVM's own lowering takes it."""
    check(nn.ConvTranspose2d(3, 4, 2, 2, 2), torch.from_numpy(rng.standard_normal((1, 3, 6, 6), np.float32)))


@pytest.mark.parametrize("arguments", [(6, 4, 16, 8, 4), (3, 5, 3, 2, 1, 1), (4, 4, 5, 1, 0)], ids=str)
def test_transposed_1d(rng, arguments):
    x = torch.from_numpy(rng.standard_normal((2, arguments[0], 13), np.float32))
    assert "Reduction" not in check(nn.ConvTranspose1d(*arguments), x)


# inputs, outputs, kernel, stride, padding, dilation, groups
@pytest.mark.parametrize(
    "arguments", [(6, 10, 5, 2, 2), (16, 32, 3, 1, 2, 2), (12, 12, 7, 1, 3, 1, 12), (12, 24, 3, 1, 0, 1, 4)], ids=str
)
def test_1d(rng, arguments):
    """The bias and SiLU run on the convolution's tiles, and nothing is reshaped between two of them."""
    module = nn.Sequential(nn.Conv1d(*arguments), nn.SiLU(), nn.Conv1d(arguments[1], 7, 1), nn.ReLU())
    rules = check(module, torch.from_numpy(rng.standard_normal((2, arguments[0], 29), np.float32)))
    assert "Reduction" not in rules
    assert rules.count("PackedGemm") + rules.count("DepthwiseConvolution") == 2
    assert rules.count("Elementwise") <= 2  # the transpositions at the begin and at the end


def test_1d_by_a_computed_weight(rng):
    class Module(nn.Module):
        def forward(self, x):
            return nn.functional.conv1d(x, x[:, :, :3].sin())

    check(Module(), torch.from_numpy(rng.standard_normal((1, 4, 17), np.float32)))


@pytest.mark.parametrize(("channels", "groups"), [(24, 24), (32, 8), (48, 3)])
def test_groups(rng, channels, groups):
    module = nn.Sequential(
        nn.Conv2d(channels, channels, 3, 2, 1, groups=groups), nn.BatchNorm2d(channels), nn.Hardswish()
    )
    rules = check(module, torch.from_numpy(rng.standard_normal((2, channels, 13, 11), np.float32)))
    assert "Reduction" not in rules


def test_residual_behind_a_reshape(rng):
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)

        def forward(self, x):
            y = torch.relu(self.first(x))
            return torch.relu(y + self.second(y) * 0.5) - x.mean((1, 2), keepdim=True)

    check(Block(), torch.from_numpy(rng.standard_normal((2, 8, 21), np.float32)))


def test_transpositions_of_transpositions(rng):
    class Transposed(nn.Module):
        def forward(self, x):
            return torch.relu(x.permute(0, 2, 3, 1).permute(0, 3, 1, 2)), x.permute(1, 2, 0, 3).permute(3, 1, 0, 2)

    class First(nn.Module):
        def forward(self, x):
            a, b = Transposed()(x)
            return a.sum() + b

    check(First(), torch.from_numpy(rng.standard_normal((2, 3, 4, 5), np.float32)))


@pytest.mark.parametrize("rows", [3, 16, 19, 197])
def test_linear_of_any_number_of_rows(rng, rows):
    module = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 17))
    rules = check(module, torch.from_numpy(rng.standard_normal((1, rows, 24), np.float32)))
    assert rules.count("PackedGemm") == 2


@pytest.mark.parametrize("make", [lambda: nn.MaxPool2d(1), lambda: nn.AvgPool2d(1), lambda: nn.AdaptiveAvgPool2d(9)])
def test_pooling_by_one_vanishes(rng, make):
    module = nn.Sequential(nn.ReLU(), make(), nn.ReLU6())
    assert check(module, torch.from_numpy(rng.standard_normal((2, 5, 9, 9), np.float32))) == ["Elementwise"]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_transposed_behind_convolutions(rng, axes, groups):
    """Convolutions are laid out channels last, transposed ones only where TVM can lower that."""
    convolution, transposed = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "ConvTranspose"))
    module = nn.Sequential(convolution(5, 9, 3, padding=1), transposed(9, 6, 3, 2, groups=groups), nn.ReLU())
    check(module, torch.randn(2, 5, *(5,) * axes))


@pytest.mark.parametrize("name", ["rows by rows", "bmm", "attention", "einsum", "few columns", "matrices"])
def test_products_of_what_is_computed(rng, name):
    """Both factors are inputs: the second is packed in the program, and steps behind run on the product's tiles."""
    functions = {
        "rows by rows": (lambda x: torch.relu(x @ x.transpose(-1, -2) * 0.3), (2, 3, 19, 33)),
        "bmm": (lambda x: torch.bmm(x, x) + 1, (3, 28, 28)),
        "attention": (lambda x: torch.softmax(x @ x.mT * 0.1, -1) @ x, (1, 3, 197, 24)),
        "einsum": (lambda x: torch.einsum("bchw,bkhw->bck", x, x.sin()), (2, 16, 5, 7)),
        "few columns": (lambda x: x @ x[:, :, :5], (2, 17, 17)),
        "matrices": (lambda x: x.t() @ x, (19, 33)),
    }

    class Module(nn.Module):
        def forward(self, x):
            return functions[name][0](x)

    rules = check(Module(), torch.from_numpy(rng.standard_normal(functions[name][1], np.float32)))
    assert rules.count("PackedGemm") == (2 if name == "attention" else 1)
    assert "Reduction" not in rules


WINDOWS = {
    "padded": (lambda x: nn.functional.unfold(x, 3, padding=1), (2, 5, 7, 18)),
    "strides": (
        lambda x: nn.functional.unfold(x, (3, 2), dilation=(2, 1), padding=(1, 2), stride=(2, 3)),
        (2, 5, 9, 8),
    ),
    "patches": (lambda x: nn.functional.unfold(x, 4, stride=4), (2, 3, 9, 17)),
    "views": (lambda x: x.unfold(2, 3, 2).unfold(3, 5, 1).contiguous(), (1, 4, 9, 12)),
    "summed": (lambda x: nn.functional.fold(x, (7, 9), 3, padding=1), (2, 45, 63)),
    "summed tiles": (lambda x: nn.functional.fold(x, (9, 9), 2, stride=2), (2, 20, 16)),
    "summed steps": (
        lambda x: nn.functional.fold(x, (9, 8), (3, 2), dilation=(2, 1), padding=(1, 2), stride=(2, 3)),
        (2, 30, 16),
    ),
    "reflection": (lambda x: nn.functional.pad(x, (3, 1, 0, 2), mode="reflect"), (2, 3, 5, 9)),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_one_kernel(rng, name):
    """Padding, windows and their order are computed of the input's places, none of which is read from memory."""
    function, shape = WINDOWS[name]

    class Module(nn.Module):
        def forward(self, x):
            return function(x)

    assert check(Module(), torch.from_numpy(rng.standard_normal(shape, np.float32))) == ["Elementwise"]
