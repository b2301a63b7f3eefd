# SPDX-License-Identifier: Apache-2.0
"""Local attention is recognised by what it computes; what only looks like it is left as it is, and stays right."""

from __future__ import annotations

import copy

import attention_forms as forms
import pytest
import torch
from attention_forms import CV, C, H, N, W
from reference import relative_norm
from torch import nn

import tvm_involution as ti
from tvm_involution.frontend.decompositions import decompositions
from tvm_involution.frontend.importer import export_module
from tvm_involution.frontend.recognition import recognise

ATTENTION = torch.ops.tvm_involution.local_attention2d.default


class Written(nn.Module):
    """Queries, keys and values of one convolution, and a form that takes them."""

    def __init__(self, form) -> None:
        super().__init__()
        self.form, self.span = form, nn.Conv2d(3, 2 * C + CV, 1)

    def forward(self, x):
        return self.form(*self.span(x).split((C, C, CV), 1))


def recognised(module: nn.Module, *arguments: torch.Tensor) -> tuple[torch.export.ExportedProgram, list[str]]:
    program = export_module(module, arguments).run_decompositions(decompositions())
    return program, recognise(program)


def attentions(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if node.target is ATTENTION]


@pytest.mark.parametrize("name", forms.FORMS)
def test_forms(name):
    form, border, bias, embedding = forms.FORMS[name]
    module, x = Written(form).eval(), torch.randn(N, 3, H, W)
    program, unknown = recognised(module, x)
    (node,) = attentions(program)
    assert node.args[-1] == border and unknown == []
    assert [x is not None for x in node.args[3:5]] == [bias, embedding]
    double = copy.deepcopy(module).double()(x.double())
    assert relative_norm(program.module()(x).detach(), double.detach()) < 1e-5


def test_a_bias_that_is_trained():
    """A parameter as a module has it, whose gradients nobody asks for here."""

    class Biased(Written):
        def __init__(self) -> None:
            super().__init__(None)
            self.bias = nn.Parameter(torch.randn(2, 9))

        def forward(self, x):
            q, k, v = self.span(x).split((C, C, CV), 1)
            scores = (forms.pixels(q) * forms.windows(k)).sum(2) + self.bias[None, :, :, None]
            return (scores.softmax(2).unsqueeze(2) * forms.windows(v)).sum(3).view(N, CV, H, W)

    module, x = Biased().eval(), torch.randn(N, 3, H, W)
    program, _ = recognised(module, x)
    (node,) = attentions(program)
    assert [part is not None for part in node.args[3:5]] == [True, False]
    double = copy.deepcopy(module).double()(x.double())
    assert relative_norm(program.module()(x).detach(), double.detach()) < 1e-5


def reflected(q, k, v):
    keys = nn.functional.pad(k, (1, 1, 1, 1), "reflect").unfold(2, 3, 1).unfold(3, 3, 1).reshape(N, 2, -1, H * W, 9)
    weights = (q.view(N, 2, -1, H * W, 1) * keys).sum(2).softmax(-1).transpose(2, 3)
    return (weights.unsqueeze(2) * forms.windows(v)).sum(3).view(N, CV, H, W)


def sharpened(q, k, v):
    """Weights that are no softmax of the scores."""
    weights = (forms.pixels(q) * forms.windows(k)).sum(2).softmax(2).sqrt()
    return (weights.unsqueeze(2) * forms.windows(v)).sum(3).view(N, CV, H, W)


def squared(q, k, v):
    weights = (forms.pixels(q) * forms.windows(k)).sum(2).square().softmax(2)
    return (weights.unsqueeze(2) * forms.windows(v)).sum(3).view(N, CV, H, W)


def of_other_pixels(q, k, v):
    return forms.plain(q.flip(2), k.roll(1, 3), v)


@pytest.mark.parametrize("form", [reflected, sharpened, squared, of_other_pixels], ids=lambda form: form.__name__)
def test_what_only_looks_like_it(form):
    module, x = Written(form).eval(), torch.randn(N, 3, H, W)
    program, _ = recognised(module, x)
    if form is not of_other_pixels:  # whose moved queries and keys are queries and keys
        assert attentions(program) == []
    expected = copy.deepcopy(module).double()(x.double()).detach()
    assert relative_norm(program.module()(x).detach(), expected) < 1e-5


@pytest.mark.parametrize("name", ["masked", "embedding"])
def test_compiled(tmp_path, name):
    module, x = Written(forms.FORMS[name][0]).eval(), torch.randn(N, 3, H, W)
    ti.compile((module, (x,))).save(tmp_path / "net.so")
    expected = copy.deepcopy(module).double()(x.double()).detach()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5
