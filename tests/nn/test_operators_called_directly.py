# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.tvm_involution.*` without the functions before them: what does not fit is refused, here as on meta."""

from __future__ import annotations

import math

import pytest
import torch

import tvm_involution as ti

OPERATORS = torch.ops.tvm_involution


def _arguments(name: str) -> list:
    """Return good arguments in float32."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    if name.startswith("involution"):
        axes = int(name[-2])
        kernel = random(2, 2, *(3,) * axes, *(5,) * axes)
        return [random(2, 4, *(5,) * axes), kernel, [1] * axes, [1] * axes, [1] * axes]
    if name == "local_attention2d":
        pictures = [random(2, channels, 5, 6) for channels in (4, 4, 6)]
        return [*pictures, random(2, 3, 3), random(4, 3, 3), 2, [3, 3], [1, 1], 0.5, "masked"]
    corners = random(2, 6, 2) * 8
    boxes = torch.cat([corners, corners + 4], -1)
    numbers = torch.arange(12).reshape(2, 6) % 2
    return {
        "nms": [boxes, random(2, 6), numbers, 0.1, 0.5, 4],
        "roi_align": [[random(2, 3, 8, 9), random(2, 3, 4, 5)], boxes, numbers, 2, [1.0, 0.5], 0],
        "paste_masks": [random(2, 6, 4, 4), boxes, 8, 9, 0.5],
    }[name]


NAMES = ["involution1d", "involution2d", "involution3d", "local_attention2d", "nms", "paste_masks", "roi_align"]


def _each(value, change):
    return [change(part) for part in value] if isinstance(value, list) else change(value)


@pytest.mark.parametrize("name", NAMES)
def test_meta_and_other_strides(name: str) -> None:
    operator, arguments = getattr(OPERATORS, name), _arguments(name)
    expected = operator(*arguments)

    def of(change) -> list:
        def changed(x):
            return change(x) if isinstance(x, torch.Tensor) else x

        return [_each(value, changed) for value in arguments]

    meta = operator(*of(lambda x: x.to("meta")))
    assert (meta.shape, meta.dtype, meta.device.type) == (expected.shape, expected.dtype, "meta")
    strided = operator(*of(lambda x: x.repeat_interleave(2, -1)[..., ::2]))
    assert torch.equal(strided, expected)
    assert torch.equal(operator(*of(lambda x: x.mT.contiguous().mT)), expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit(name: str) -> None:
    operator, good = getattr(OPERATORS, name), _arguments(name)
    tensors = [i for i, value in enumerate(good) if isinstance(value, torch.Tensor)]
    changes = [lambda x: x[0], lambda x: x[None], lambda x: x[:1], lambda x: x.to(torch.complex64), torch.Tensor.bool]
    changes += [lambda x: x.to("meta"), lambda x: x.half() if x.is_floating_point() else x.float()]
    for position in tensors:
        for number, change in enumerate(changes):
            bad = [*good]
            bad[position] = change(good[position])
            with pytest.raises(ti.UserError) as raised:
                operator(*bad)
                pytest.fail(f"argument {position} with change {number} was taken")
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_windows_that_are_not_there(axes: int) -> None:
    operator = getattr(OPERATORS, f"involution{axes}d")
    ones, none = [1] * axes, [0] * axes
    for taps, side in ((0, 6), (6, 0)):
        kernel = torch.zeros(1, 1, *(taps,) * axes, *(side,) * axes)
        with pytest.raises(ti.UserError, match="no window"):
            operator(torch.zeros(1, 2, *(5,) * axes), kernel, ones, none, ones)
    x, kernel, *geometry = _arguments(f"involution{axes}d")
    for position in range(3):
        for wrong in ([], [1] * (axes + 1), [-1] * axes):
            with pytest.raises(ti.UserError, match="must be an int or"):
                operator(x, kernel, *geometry[:position], wrong, *geometry[position + 1 :])


def test_regions_of_no_level_and_of_no_size() -> None:
    features, boxes, levels, *rest = _arguments("roi_align")
    expected = OPERATORS.roi_align(features, boxes, levels, *rest).unflatten(0, (2, 6))
    assert bool(expected.flatten(2).any(2).all())
    levels[0, 0], levels[0, 1] = -1, 2
    boxes[1, 0, 2], boxes[1, 1, 1] = math.nan, math.inf
    for sampling_ratio in (0, 2):
        rest[-1] = sampling_ratio
        actual = OPERATORS.roi_align(features, boxes, levels, *rest).unflatten(0, (2, 6))
        assert not actual[:, :2].any() and bool(actual.isfinite().all())
        if sampling_ratio == 0:
            assert torch.equal(actual[:, 2:], expected[:, 2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_find_the_same_pixels(dtype: torch.dtype) -> None:
    """Places beyond 256 are no bfloat16 numbers, and areas beyond 65504 no float16."""
    masks = torch.ones(1, 1, 4, 4, dtype=dtype)
    boxes = torch.tensor([[[264.0, 0.0, 392.0, 8.0]]], dtype=dtype)
    wide = OPERATORS.paste_masks(masks.float(), boxes.float(), 8, 400, 0.5)
    assert wide.any() and torch.equal(OPERATORS.paste_masks(masks, boxes, 8, 400, 0.5), wide)
    boxes = torch.tensor([[[0.0, 0.0, 512.0, 512.0], [0.0, 0.0, 512.0, 480.0]]], dtype=dtype)
    scores, groups = torch.tensor([[0.9, 0.8]], dtype=dtype), torch.zeros(1, 2, dtype=torch.int64)
    assert OPERATORS.nms(boxes, scores, groups, 0.1, 0.5, 2).tolist() == [[0, -1]]
