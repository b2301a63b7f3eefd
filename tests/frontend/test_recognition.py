# SPDX-License-Identifier: Apache-2.0
"""Involutions are recognised by what they compute; what only looks like one is left as it is, and stays right."""

from __future__ import annotations

import sys

import involution_forms
import pytest
import torch
from involution_forms import FORMS, KK, OTHER_AXES, PICK, SLICES, C, G, H, K, N, W, back, grouped, windows
from reference import relative_norm
from torch import nn
from torch.nn import functional as F

import tvm_involution as ti
from tvm_involution.frontend.decompositions import decompositions
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.frontend.recognition import recognise
from tvm_involution.frontend.recognition.probing import probe
from tvm_involution.frontend.recognition.region import Region
from tvm_involution.relax.operators import involution as operator

INVOLUTION = torch.ops.tvm_involution.involution2d.default


class Written(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


class Generated(nn.Module):
    """A kernel of a 1x1 convolution, and a form that takes it."""

    def __init__(self, form) -> None:
        super().__init__()
        self.span = nn.Conv2d(C, G * KK, 1)
        self.form = form

    def forward(self, x):
        return self.form(x, self.span(x))


def inputs(batch: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, C, H, W), torch.randn(batch, G * KK, H, W)


def recognised(module: nn.Module, *arguments: torch.Tensor) -> tuple[torch.export.ExportedProgram, list[str]]:
    program = export_module(module, arguments).run_decompositions(decompositions())
    return program, recognise(program)


def involutions(program: torch.export.ExportedProgram) -> int:
    return sum(node.target is INVOLUTION for node in program.graph.nodes)


def compare(program: torch.export.ExportedProgram, module: nn.Module, *arguments: torch.Tensor) -> float:
    expected = module(*(argument.double() for argument in arguments))
    return relative_norm(program.module(check_guards=False)(*arguments).detach(), expected.detach())


@pytest.mark.parametrize("name", FORMS)
def test_forms_become_one_involution(name):
    module, arguments = Written(FORMS[name]), inputs()
    program, unknown = recognised(module, *arguments)
    assert involutions(program) == 1
    assert not unknown
    assert compare(program, module, *arguments) < 1e-5


def assert_recognised(module, arguments, operator):
    """Check that a module is found to be one call of `operator`, and computes the same by it."""
    program, unknown = recognised(module, *arguments)
    found = [node.target for node in program.graph.nodes if "involution" in str(node.target)]
    assert found == [getattr(torch.ops.tvm_involution, operator).default]
    assert not unknown
    assert compare(program, module, *arguments) < 1e-5


@pytest.mark.parametrize("name", OTHER_AXES)
def test_forms_along_one_and_three_axes(tmp_path, name):
    written_as, size, form = OTHER_AXES[name]
    module = Written(form)
    arguments = torch.randn(N, C, *size), torch.randn(N, G * K ** len(size), *size)
    assert_recognised(module, arguments, written_as)
    ti.compile((module, arguments), batch=N).save(tmp_path / "form.so")
    expected = form(*(argument.double() for argument in arguments))
    assert relative_norm(ti.load(tmp_path / "form.so")(*arguments), expected) < 1e-5


@pytest.mark.parametrize("name", SLICES)
def test_slices_along_one_and_three_axes(name):
    written_as, size, form = SLICES[name]
    module = Written(form)
    arguments = torch.randn(N, C, *size), torch.randn(N, G * K ** len(size), *size)
    assert_recognised(module, arguments, written_as)


@pytest.mark.parametrize("name", ["official", "F.pad with zeros", "shifted slices added", "einsum", "3-D slices added"])
def test_the_first_pair_that_is_tried_is_the_right_one(monkeypatch, name):
    probed = []
    monkeypatch.setattr(sys.modules[recognise.__module__], "probe", lambda *r: probed.append(r) or probe(*r))
    form = SLICES[name][2] if name in SLICES else FORMS[name]
    size = SLICES[name][1] if name in SLICES else (H, W)
    recognised(Written(form), torch.randn(N, C, *size), torch.randn(N, G * K ** len(size), *size))
    assert len(probed) == 1


@pytest.mark.parametrize("name", ["official", "matmul", "shifted slices stacked"])
def test_forms_that_were_decomposed_before_they_were_saved(name):
    module, arguments = Written(FORMS[name]), inputs()
    saved = export_module(module, arguments).run_decompositions()
    program = saved.run_decompositions(decompositions())
    recognise(program)
    assert involutions(program) == 1
    assert compare(program, module, *arguments) < 1e-5


@pytest.mark.parametrize("name", ["official", "kernel (k, k, G)", "kernel flipped", "mean", "groups interleaved"])
def test_compiled_with_the_kernel_of_a_convolution(tmp_path, name):
    """The order of the kernel's channels is that of the convolution's rows."""
    module, x = Generated(FORMS[name]).eval(), inputs()[0]
    mod = import_exported_program(export_module(module, [x]))
    assert mod.script().count(operator.OP_NAME) == 1
    ti.compile((module, x), batch=N).save(tmp_path / "form.so")
    with torch.no_grad():
        expected = module.double()(x.double())
    assert relative_norm(ti.load(tmp_path / "form.so")(x), expected) < 1e-5


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "padding"),
    [(3, 2, 1, 1), (5, 1, 2, 4), ((1, 3), 1, 1, (0, 1)), (4, 3, 1, 2), (2, 2, 1, 0)],
)
def test_geometry(size, stride, dilation, padding):
    taps = size**2 if isinstance(size, int) else size[0] * size[1]
    x = torch.randn(1, 6, 11, 9)
    unfold = nn.Unfold(size, dilation, padding, stride)
    pixels = unfold(x).shape[-1]

    def form(x, kernel):
        return (unfold(x).view(1, 3, 2, taps, pixels) * kernel.unsqueeze(2)).sum(3).view(1, 6, pixels)

    arguments = (x, torch.randn(1, 3, taps, pixels))
    program, _ = recognised(Written(form), *arguments)
    assert involutions(program) == 1
    assert compare(program, Written(form), *arguments) < 1e-5


@pytest.mark.parametrize("kernel_first", [False, True])
@pytest.mark.parametrize("groups", [1, 8])
def test_one_group_and_a_group_a_channel(groups, kernel_first):
    """With a group a channel the product is as symmetric as can be: windows are still those of the picture."""
    x, kernel = torch.randn(1, 8, 6, 5), torch.randn(1, groups * 9, 6, 5)

    def form(x, kernel):
        taken = F.unfold(x, 3, padding=1).view(1, groups, 8 // groups, 9, 6, 5)
        kernel = kernel.view(1, groups, 1, 9, 6, 5)
        return (kernel * taken if kernel_first else taken * kernel).sum(3).view(1, 8, 6, 5)

    program, _ = recognised(Written(form), x, kernel)
    assert involutions(program) == 1
    (found,) = [node for node in program.graph.nodes if node.target is INVOLUTION]
    assert list(found.args[1].meta["val"].shape) == [1, groups, 3, 3, 6, 5] and list(found.args[3]) == [1, 1]
    assert compare(program, Written(form), x, kernel) < 1e-5


@pytest.mark.parametrize(
    "activation",
    [
        torch.sigmoid,
        torch.tanh,
        lambda kernel: F.leaky_relu(kernel, 0.2).exp(),
        lambda kernel: kernel.softmax(3),
        lambda kernel: kernel.log_softmax(3).exp(),
    ],
    ids=["sigmoid", "tanh", "chain", "softmax", "log_softmax"],
)
@pytest.mark.parametrize("repeated", ["repeat", "expand", "repeat_interleave"])
def test_a_kernel_that_is_repeated_and_then_activated_keeps_its_groups(repeated, activation):
    def form(x, kernel):
        kernel = {
            "repeat": lambda: grouped(kernel).repeat(1, 1, C // G, 1, 1, 1),
            "expand": lambda: grouped(kernel).expand(N, G, C // G, KK, H, W),
            "repeat_interleave": lambda: grouped(kernel).repeat_interleave(C // G, 2),
        }[repeated]()
        return back((windows(x) * activation(kernel)).sum(3))

    arguments = inputs()
    program, _ = recognised(Written(form), *arguments)
    (found,) = (node for node in program.graph.nodes if node.target is INVOLUTION)
    assert found.args[1].meta["val"].shape[1] == G
    assert compare(program, Written(form), *arguments) < 1e-5


def test_a_softmax_over_what_is_repeated_stays():
    """Along an axis on which elements are repeated it divides by other sums."""

    def form(x, kernel):
        kernel = grouped(kernel).expand(N, G, C // G, KK, H, W).softmax(2)
        return back((windows(x) * kernel).sum(3))

    arguments = inputs()
    program, _ = recognised(Written(form), *arguments)
    assert compare(program, Written(form), *arguments) < 1e-5


def test_a_tensor_that_is_rolled_once_is_not_wrapped():
    module, x = Written(lambda x: torch.roll(x, (2, 2), (2, 3)) + 1), inputs()[0]
    program, _ = recognised(module, x)
    assert not any("cat" in str(node.target) for node in program.graph.nodes)
    assert compare(program, module, x) < 1e-5


def test_of_a_large_batch_two_pictures_are_evaluated():
    def form(x, kernel):
        taken = F.unfold(x, 3, padding=1).view(7, 2, 4, 9, 6, 5)
        return (taken * kernel.view(7, 2, 1, 9, 6, 5)).sum(3).view(7, 8, 6, 5)

    arguments = inputs(7)
    program, _ = recognised(Written(form), *arguments)
    assert involutions(program) == 1
    assert compare(program, Written(form), *arguments) < 1e-5


CROPPED = [
    "official",
    "flat spatial axes",
    "bmm",
    "einsum, two axes of taps",
    "kernel (k, k, G)",
    "groups interleaved",
    "Tensor.unfold",
    "one-hot convolution",
    "shifted slices stacked",
    "rolled around the border",
]


@pytest.fixture
def little_memory(monkeypatch):
    """Large pictures, and so little memory that none of its regions can be evaluated whole."""
    monkeypatch.setattr(involution_forms, "H", 61)
    monkeypatch.setattr(involution_forms, "W", 50)
    monkeypatch.setattr(sys.modules[Region.__module__], "_LARGEST", N * C * 61 * 50)


@pytest.mark.parametrize("name", CROPPED)
def test_of_a_large_picture_a_part_is_evaluated(little_memory, monkeypatch, name):
    probed = []
    monkeypatch.setattr(sys.modules[recognise.__module__], "probe", lambda *r: probed.append(r[1]) or probe(*r))
    arguments = torch.randn(N, C, 61, 50), torch.randn(N, G * KK, 61, 50)
    module = Written(FORMS[name])
    program, unknown = recognised(module, *arguments)
    assert involutions(program) == 1
    assert not unknown
    assert max(shape[-1] for shape in probed) < 45
    assert compare(program, module, *arguments) < 1e-5


def strided_windows(x, kernel):
    """Every second window, along rows of other sizes than the columns."""
    taken = F.unfold(x, 3, padding=1, stride=2).view(N, G, C // G, KK, 31, 25)
    return (taken * kernel.view(N, G, 1, KK, 31, 25)).sum(3).view(N, C, 31, 25)


def other_line(x, kernel):
    """An involution but for a line in the middle."""
    product = involution_forms.windows(x) * involution_forms.grouped(kernel)
    product = torch.cat([product[..., :30, :], -product[..., 30:31, :], product[..., 31:, :]], 4)
    return product.sum(3).reshape(N, C, 61, 50)


def by_a_mask(x, kernel):
    """A line in the middle counts for nothing."""
    mask = (torch.arange(61) != 30).to(x.dtype)[:, None]
    return ((involution_forms.windows(x) * involution_forms.grouped(kernel)) * mask).sum(3).reshape(N, C, 61, 50)


@pytest.mark.parametrize(
    ("form", "pixels", "found"), [(strided_windows, (31, 25), 1), (other_line, (61, 50), 0), (by_a_mask, (61, 50), 0)]
)
def test_parts_of_other_windows_and_of_what_is_no_involution(little_memory, form, pixels, found):
    arguments = torch.randn(N, C, 61, 50), torch.randn(N, G * KK, *pixels)
    program, _ = recognised(Written(form), *arguments)
    assert involutions(program) == found
    assert compare(program, Written(form), *arguments) < 1e-5


def test_regions_of_one_structure_are_evaluated_once(monkeypatch):
    probed = []
    monkeypatch.setattr(sys.modules[recognise.__module__], "probe", lambda *r: probed.append(r) or probe(*r))

    once = FORMS["kernel by view"]

    def thrice(x, kernel):
        return once(once(once(x, kernel).relu(), kernel).relu(), kernel)

    arguments = inputs()
    recognised(Written(once), *arguments)
    alone = len(probed)
    assert alone
    program, _ = recognised(Written(thrice), *arguments)
    assert involutions(program) == 3
    assert len(probed) == 2 * alone
    assert compare(program, Written(thrice), *arguments) < 1e-5


def test_an_involution_of_an_involution():
    def form(x, kernel):
        return FORMS["official"](FORMS["official"](x, kernel), kernel)

    arguments = inputs()
    program, unknown = recognised(Written(form), *arguments)
    assert involutions(program) == 2
    assert not unknown
    assert compare(program, Written(form), *arguments) < 1e-5


def test_regions_that_differ_in_a_constant_alone_are_told_apart():
    backwards = {dtype: pick.flip(0) for dtype, pick in PICK.items()}

    def form(x, kernel):
        taken = (F.conv2d(x, picks[x.dtype], padding=1, groups=C) for picks in (PICK, backwards))
        first, second = ((t.view(N, G, C // G, KK, H, W) * grouped(kernel)).sum(3) for t in taken)
        return back(first - 2 * second)

    module, arguments = Written(form), inputs()
    program, _ = recognised(module, *arguments)
    assert involutions(program) == 2
    assert compare(program, module, *arguments) < 1e-5


def attention(x, query):
    """Almost local attention: scores of windows, the roots of a softmax over them, windows once more."""
    keys = F.unfold(x, 3, padding=1).view(N, C, 9, H * W)
    weights = (keys * query[:, :C].reshape(N, C, 1, H * W)).sum(1, keepdim=True).softmax(2).sqrt()
    return (keys * weights).sum(2)


def twice(x, kernel):
    """Windows times themselves."""
    taken = windows(x)
    return back((taken * taken * grouped(kernel)).sum(3))


def weighted_taps(x, kernel):
    """Taps count more the later they come."""
    weights = torch.arange(1.0, KK + 1, dtype=x.dtype).view(1, 1, 1, KK, 1, 1)
    return back((windows(x) * grouped(kernel) * weights).sum(3))


def mixed_channels(x, kernel):
    """A channel's windows are summed over its group, too."""
    return (windows(x) * grouped(kernel)).sum((2, 3))


def carafe(x, kernel):
    """Reassembly: a kernel for each of the four pixels that one becomes."""
    taken = F.unfold(x, 3, padding=1).view(N, C, 1, KK, H, W)
    kernel = torch.cat([kernel, kernel.flip(1)], 1).view(N, 1, 4, KK, H, W).softmax(3)
    out = (taken * kernel).sum(3).view(N, 4 * C, H, W)
    return F.pixel_shuffle(out, 2)


def local_convolution(x, kernel):
    weights = torch.linspace(-1, 1, C * KK * H * W, dtype=x.dtype).view(C * KK, H * W)
    return (F.unfold(x, 3, padding=1) * weights).view(N, C, KK, H, W).sum(2) + kernel[:, :C]


def negative_corner(x, kernel):
    """An involution but for one pixel."""
    product = windows(x) * grouped(kernel)
    product = torch.cat([product[..., :-1, :], -product[..., -1:, :]], 4)
    return back(product.sum(3))


@pytest.mark.parametrize(
    "form",
    [twice, weighted_taps, mixed_channels, carafe, local_convolution, negative_corner],
)
def test_what_looks_like_one_stays_right(form):
    module, arguments = Written(form), inputs()
    program, _ = recognised(module, *arguments)
    assert involutions(program) == 0
    assert compare(program, module, *arguments) < 1e-5


@pytest.mark.parametrize("axes", [(2, 3), (1, 2, 3), (0, 1, 2, 3)])
def test_sums_of_products_with_other_batches_stay_right(axes):
    module = Written(lambda x, scale: (x * scale[:, None, None]).sum(axes))
    arguments = torch.randn(3, 16, 6, 5), torch.randn(16)
    program, _ = recognised(module, *arguments)
    assert involutions(program) == 0
    assert compare(program, module, *arguments) < 1e-5


def test_of_what_is_almost_local_attention_the_aggregation_is_one():
    """Its weights are a kernel; the scores are none, and are told."""
    module, arguments = Written(attention), inputs()
    program, (unknown,) = recognised(module, *arguments)
    assert involutions(program) == 1
    assert "test_recognition.py:" in unknown
    assert compare(program, module, *arguments) < 1e-5


def test_what_is_not_recognised_is_compiled_and_named_with_its_line(tmp_path):
    arguments = inputs()
    library = ti.compile((Written(mixed_channels), arguments), batch=N)
    (note,) = library.notes
    assert "test_recognition.py:" in note
    assert "\n" not in note
    library.save(tmp_path / "mixed.so")
    expected = mixed_channels(*(argument.double() for argument in arguments))
    assert relative_norm(ti.load(tmp_path / "mixed.so")(*arguments), expected) < 1e-5


@pytest.mark.parametrize("size", [4, (2, 3)], ids=["square", "with a rest"])
def test_patches_are_split_axes(tmp_path, size):
    patches = nn.Unfold(size, stride=size)
    x = torch.randn(1, 3, 8, 8)
    ti.compile((patches, x)).save(tmp_path / "patches.so")
    assert relative_norm(ti.load(tmp_path / "patches.so")(x), patches(x)) == 0


def test_selections_of_as_many_as_values_say_are_passed_over():
    """Whether they are rolls is asked; their sizes are known to nobody. A number has no axis to be rolled along."""
    repeats = torch.tensor([0, 1, 2])
    module = Written(
        lambda x, y: (
            x.repeat_interleave(repeats, 1).sum() + x.sum().index_select(0, repeats[:1]),
            y.masked_select(y > 0).index_select(0, repeats),
        )
    )
    program = export_module(module, [torch.randn(2, 3, 4), torch.randn(40)]).run_decompositions(decompositions())
    assert recognise(program) == []


def filtered(x, kernel):
    """One kernel for all pixels."""
    kernel = kernel.mean((2, 3)).view(N, G, 1, KK, 1, 1)
    return back((windows(x) * kernel).sum(3))


def repeated_windows(x, kernel):
    """CARAFE: windows are taken before pixels are repeated."""
    taken = F.interpolate(F.unfold(x, K, padding=1).view(N, -1, H, W), scale_factor=2).view(N, C, KK, 2 * H, 2 * W)
    kernel = F.interpolate(kernel, scale_factor=2, mode="bilinear")
    return (taken * kernel[:, None, :KK]).sum(2)


@pytest.mark.parametrize("form", [filtered, repeated_windows])
def test_sums_over_windows_are_no_windows_of_theirs(form):
    """Of taps that lie on an axis of their own there would be an involution of one window, which nobody wrote."""
    module, arguments = Written(form), inputs()
    program, _ = recognised(module, *arguments)
    calls = [str(node.target) for node in program.graph.nodes]
    assert not any("involution" in name for name in calls)
    assert compare(program, module, *arguments) < 1e-5
