# SPDX-License-Identifier: Apache-2.0
"""The rules for suppression, RoIAlign and pasted masks, on this CPU and, emulated, on a GPU."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import reference
import torch
import tvm
from cuda_emulator import build_cuda, run_cuda
from detections import random_boxes, random_masks
from tvm import s_tir, te

from tvm_involution import lowering, nn
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target
from tvm_involution.te import nms, paste_masks, roi_align

GPU = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")
SCALES = (1 / 4, 1 / 8)


def run_scheduled(expression, arrays, shape, dtype, kind, rule) -> np.ndarray:
    """Run what the default rule for `kind`, cpu or gpu, makes of an expression; it must be `rule`."""
    inputs = [te.placeholder(a.shape, str(a.dtype), name=f"input_{i}") for i, a in enumerate(arrays)]
    program = te.create_prim_func([*inputs, expression(*inputs)]).with_attr("global_symbol", "main")
    target = GPU if kind == "gpu" else resolve_target("llvm")
    sch, name = default_schedule(program, target)
    assert isinstance(sch, s_tir.Schedule) and name == rule
    if kind == "gpu":
        if not cuda_emulator.available:
            pytest.skip("needs g++")
        (out,) = run_cuda(build_cuda(sch, target), list(arrays), target)
        return out
    out = tvm.runtime.tensor(np.zeros(shape, dtype))
    lowering.build(sch.mod, target)(*(tvm.runtime.tensor(a) for a in arrays), out)
    return out.numpy()


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
@pytest.mark.parametrize(("score_threshold", "max_output"), [(0.25, 300), (-1.0, 40), (2.0, 5)])
def test_suppression(rng, kind, score_threshold, max_output):
    """Ties in score, several chunks of candidates, more and fewer boxes than wanted, and none at all."""
    boxes, groups = random_boxes(rng, 2, 600), rng.integers(0, 3, (2, 600))
    scores = np.sort(rng.integers(0, 10, (2, 600)).astype(np.float32) / 10)[:, ::-1].copy()
    arguments = (score_threshold, 0.5, max_output)
    actual = run_scheduled(
        lambda *x: nms(*x, *arguments), (boxes, scores, groups), (2, max_output), "int64", kind, "NMS"
    )
    assert actual.tolist() == [reference.nms(*image, *arguments) for image in zip(boxes, scores, groups, strict=True)]


@pytest.mark.parametrize(("kind", "rule"), [("cpu", "RoIAlign"), ("gpu", "ThreadPerOutput")])
def test_a_region_of_nan_reads_nothing_foreign(rng, kind, rule):
    """Its samples weigh nothing; what becomes an index lies within the level (the emulator would notice)."""
    features = [rng.standard_normal((1, *size, 32)).astype(np.float32) for size in ((12, 16), (6, 8))]
    rois, levels = np.full((1, 2, 4), np.nan, np.float32), np.array([[0, 1]])
    actual = run_scheduled(
        lambda *x: roi_align(x[:2], x[2], x[3], 3, SCALES, 2),
        (*features, rois, levels),
        (2, 3, 3, 32),
        "float32",
        kind,
        rule,
    )
    assert not np.nan_to_num(actual).any()


@pytest.mark.parametrize("channels", [5, 32, 80])
@pytest.mark.parametrize(("kind", "rule"), [("cpu", "RoIAlign"), ("gpu", "ThreadPerOutput")])
def test_roi_align(rng, kind, rule, channels):
    features = [rng.standard_normal((2, *size, channels)).astype(np.float32) for size in ((12, 16), (6, 8))]
    corner = rng.uniform(-10, 40, (2, 5, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 50, (2, 5, 2))], -1).astype(np.float32)
    rois[0, 0] = 0
    levels = rng.integers(0, 2, (2, 5))
    actual = run_scheduled(
        lambda *x: roi_align(x[:2], x[2], x[3], 3, SCALES),
        (*features, rois, levels),
        (10, 3, 3, channels),
        "float32",
        kind,
        rule,
    )
    channels_first = [torch.from_numpy(x.transpose(0, 3, 1, 2)).double() for x in features]
    expected = nn.roi_align(channels_first, torch.from_numpy(rois).double(), torch.from_numpy(levels), 3, SCALES)
    assert reference.relative_norm(actual, expected.permute(0, 2, 3, 1).numpy()) < 1e-5


@pytest.mark.parametrize(("kind", "rule"), [("cpu", "PasteMasks"), ("gpu", "ThreadPerOutput")])
def test_pasted_masks(rng, kind, rule):
    masks, boxes = random_masks(rng, 5)
    arrays = (masks.numpy(), boxes.numpy())
    actual = run_scheduled(lambda *x: paste_masks(*x, 30, 40), arrays, (2, 5, 30, 40), "bool", kind, rule)
    expected = nn.paste_masks(masks.double(), boxes.double(), 30, 40)
    assert expected.any() and not actual[:, -1].any()
    # a pixel right at the threshold may fall on either side
    assert (actual != expected.numpy()).sum() <= 2
