# SPDX-License-Identifier: Apache-2.0
"""Detectors and segmentation networks compile whole, and compute what their modules do."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from dense_networks import small_detector, small_retinanet, small_segmentor
from torch import nn
from torch.nn import functional as F

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target


def run_compiled(module: nn.Module, x: torch.Tensor, path) -> list[np.ndarray]:
    ti.compile(module, image_size=tuple(x.shape[2:]), batch=x.shape[0]).save(path)
    return [np.asarray(value) for value in ti.load(path).run(x.numpy()).values()]


@pytest.mark.parametrize("kind", ["convolution", "involution", "upernet"])
def test_segmentor(kind, tmp_path, rng):
    model, x = small_segmentor(kind), torch.randn(2, 3, 70, 90)
    (actual,) = run_compiled(model, x, tmp_path / "net.so")
    with torch.no_grad():
        assert reference.relative_norm(actual, model(x).numpy()) < 1e-5


def assert_same_detections(actual: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Every object has a twin; nearly equal scores may change places, and a hair decides who suppresses whom."""
    for image in range(expected[0].shape[0]):
        boxes, scores, labels, *masks = (part[image] for part in actual)
        free = set(np.flatnonzero(scores > 0))
        wanted = np.flatnonzero(expected[1][image] > 0)
        twins = 0
        for i in wanted:
            box, score, label, *mask = (part[image][i] for part in expected)
            for j in sorted(free):
                same = labels[j] == label and abs(scores[j] - score) < 1e-4 and np.abs(boxes[j] - box).max() < 0.05
                if same and all((a[j] != b).mean() < 2e-3 for a, b in zip(masks, mask, strict=True)):
                    free.remove(j)
                    twins += 1
                    break
        assert len(wanted) >= 10
        assert twins >= 0.95 * len(wanted), f"{twins} of {len(wanted)}"
        assert len(free) <= 0.05 * len(wanted)


@pytest.mark.parametrize("involution", [False, True])
def test_mask_rcnn(involution, tmp_path, rng):
    model, x = small_detector(involution), torch.randn(2, 3, 96, 64)
    actual = run_compiled(model, x, tmp_path / "net.so")
    with torch.no_grad():
        expected = [part.numpy() for part in model(x)]
    assert [a.dtype for a in actual] == [e.dtype for e in expected]
    assert_same_detections(actual, expected)


def test_retinanet(tmp_path, rng):
    model, x = small_retinanet(), torch.randn(2, 3, 96, 64)
    actual = run_compiled(model, x, tmp_path / "net.so")
    with torch.no_grad():
        assert_same_detections(actual, [part.numpy() for part in model(x)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_boxes_need_float32(dtype):
    with pytest.raises(ti.UserError, match=f"{dtype} is too coarse"):
        ti.compile("faster_rcnn_rednet50_neck_head", dtype=dtype)


class Sort(nn.Module):
    def forward(self, x):
        values, order = torch.sort(self.grid(x), dim=1, descending=True, stable=True)
        return values, order

    @staticmethod
    def grid(x):
        """Few different values, so that many are equal."""
        return (x.flatten(1) * 2).floor()


def test_sorting_keeps_the_order_of_equal_values(tmp_path, rng):
    model, x = Sort(), torch.randn(2, 3, 8, 9)
    model.weight = nn.Parameter(torch.zeros(1, 3, 1, 1))  # compile learns the input's channels from it
    values, order = run_compiled(model, x, tmp_path / "net.so")
    expected = model(x)
    assert (values.tolist(), order.tolist()) == (expected[0].tolist(), expected[1].tolist())


class Resize(nn.Module):
    def __init__(self, size, mode):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.size, self.arguments = size, {"mode": mode} | ({"align_corners": False} if mode == "bilinear" else {})

    def forward(self, x):
        return F.interpolate(self.conv(x), size=self.size, **self.arguments)


@pytest.mark.parametrize("size", [(14, 18), (13, 25), (5, 4), (7, 9)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_resizing(mode, size, tmp_path, rng):
    model, x = Resize(size, mode).eval(), torch.randn(1, 3, 7, 9)
    (actual,) = run_compiled(model, x, tmp_path / "net.so")
    with torch.no_grad():
        assert reference.relative_norm(actual, model(x).numpy()) < 1e-5


class Transposed(nn.Module):
    def __init__(self, kernel_size, stride, padding, bias=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 6, kernel_size, stride, padding, bias=bias)

    def forward(self, x):
        return self.up(self.conv(x)).relu()


@pytest.mark.parametrize("arguments", [(2, 2, 0), ((3, 1), (3, 1), 0, False), (3, 2, 1)])
def test_transposed_convolution(arguments, tmp_path, rng):
    model, x = Transposed(*arguments).eval(), torch.randn(2, 3, 5, 4)
    (actual,) = run_compiled(model, x, tmp_path / "net.so")
    with torch.no_grad():
        assert reference.relative_norm(actual, model.double()(x.double()).numpy()) < 1e-5


def test_transposed_convolution_without_overlap_is_a_matrix_product():
    mod = import_exported_program(export_module(Transposed(2, 2, 0).eval(), [torch.zeros(1, 3, 5, 4)]))
    lowered = pipeline.run(mod, resolve_target("llvm"), until="lower operators")
    names = [name.name_hint for name in lowered.get_global_vars()]
    assert sum("conv2d" in name for name in names) == 2 and not any("conv2d_transpose" in name for name in names)


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.conv(x).amax(3, keepdim=True).squeeze(-1), self.conv(x).squeeze(-2)


def test_squeezing_the_last_axis(tmp_path, rng):
    model, x = Squeeze().eval(), torch.randn(2, 3, 5, 4)
    with torch.no_grad():
        expected = model(x)
    for actual, value in zip(run_compiled(model, x, tmp_path / "net.so"), expected, strict=True):
        assert reference.relative_norm(actual, value.numpy()) < 1e-5
