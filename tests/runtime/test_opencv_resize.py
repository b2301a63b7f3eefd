# SPDX-License-Identifier: Apache-2.0
"""OpenCV's resizing to the bit, and the pictures that mmcls, mmdet and mmseg make with it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tvm_involution.runtime import Preprocessing
from tvm_involution.runtime.opencv_resize import resize, resize_linear
from tvm_involution.runtime.placement import Placement, place_picture
from tvm_involution.runtime.preprocessing import crop_picture, picture_to_array

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSIFY = Preprocessing(256, 224, MEAN, STD, "opencv")
WHOLE = Preprocessing(None, None, MEAN, STD, "opencv")


def random_pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def cv2() -> Any:
    return pytest.importorskip("cv2")


def test_what_opencv_computes(rng: np.random.Generator, cv2: Any) -> None:
    for number in range(80):
        height, width, to_height, to_width = (int(x) for x in rng.integers(1, 300, 4))
        if number % 4 == 0:
            height, width = 2 * to_height, 2 * to_width
        elif number % 4 == 1:
            to_height = height
        pixels = random_pixels(rng, height, width)
        if number % 3 == 0:
            pixels = np.where(pixels > 128, 255, 0).astype(np.uint8)
        whole = cv2.resize(pixels, (to_width, to_height), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(resize_linear(pixels, (to_height, to_width)), whole)
        top, left = int(rng.integers(to_height)), int(rng.integers(to_width))
        window = (top, left, int(rng.integers(to_height - top)) + 1, int(rng.integers(to_width - left)) + 1)
        cut = whole[top : top + window[2], left : left + window[3]]
        np.testing.assert_array_equal(resize_linear(pixels, (to_height, to_width), window), cut)


# a picture of i * 37 % 251 in three sizes, and what OpenCV 4.14 and 5.0 make of it
_KNOWN = {
    (2, 3): [[[64, 101, 138], [123, 35, 72], [182, 136, 89]], [[128, 123, 160], [104, 141, 178], [121, 116, 111]]],
    (1, 2): [[[163, 106, 143], [158, 164, 106]]],
}


def test_without_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    pixels = (np.arange(4 * 5 * 3) * 37 % 251).astype(np.uint8).reshape(4, 5, 3)
    for size, expected in _KNOWN.items():
        np.testing.assert_array_equal(resize(pixels, size), expected)


@pytest.mark.parametrize("shape", [(300, 451), (427, 640), (640, 427), (512, 700), (20, 31), (1000, 5)], ids=str)
def test_the_pipeline_of_mmcls(rng: np.random.Generator, cv2: Any, shape: tuple[int, int]) -> None:
    """Resize(size=(256, -1)), CenterCrop(224), Normalize(to_rgb=True) of mmcls 0.5, its arithmetic, of BGR."""
    pixels = random_pixels(rng, *shape)
    height, width = shape
    size = (256, int(256 * height / width)) if width < height else (int(256 * width / height), 256)
    resized = cv2.resize(np.ascontiguousarray(pixels[:, :, ::-1]), size, interpolation=cv2.INTER_LINEAR)
    top, left = (max(0, round((side - 224) / 2.0)) for side in resized.shape[:2])
    expected = normalized(cv2, resized[top : top + 224, left : left + 224])
    cut = crop_picture(Image.fromarray(pixels), CLASSIFY, (224, 224))
    np.testing.assert_array_equal(picture_to_array(cut, CLASSIFY)[0], expected)


@pytest.mark.parametrize(
    ("shape", "image_size"),
    [((480, 640), (800, 1280)), ((427, 640), (800, 1280)), ((333, 500), (256, 400)), ((1024, 2048), (512, 1024))],
    ids=str,
)
def test_the_pipelines_of_mmdet_and_mmseg(
    rng: np.random.Generator, cv2: Any, shape: tuple[int, int], image_size: tuple[int, int]
) -> None:
    """Resize(img_scale=..., keep_ratio=True), Normalize, Pad: imrescale, imnormalize and impad of mmcv 1.x."""
    pixels = random_pixels(rng, *shape)
    scale = min(max(image_size) / max(shape), min(image_size) / min(shape))
    height, width = (int(side * float(scale) + 0.5) for side in shape)
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    expected = np.zeros((3, *image_size), np.float32)
    expected[:, :height, :width] = normalized(cv2, cv2.resize(bgr, (width, height), interpolation=cv2.INTER_LINEAR))
    array, placement = place_picture(Image.fromarray(pixels), WHOLE, image_size)
    assert placement.resized == (height, width)
    np.testing.assert_array_equal(array[0], expected)


def normalized(cv2: Any, bgr: np.ndarray) -> np.ndarray:
    """mmcv's imnormalize with to_rgb, then channels first."""
    image = bgr.copy().astype(np.float32)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, np.float64(np.array(MEAN, np.float32).reshape(1, -1)), image)
    cv2.multiply(image, 1 / np.float64(np.array(STD, np.float32).reshape(1, -1)), image)
    return image.transpose(2, 0, 1)


@pytest.mark.parametrize("photograph", [(40, 60), (13, 20), (100, 33), (24, 36), (7, 90)], ids=str)
def test_classes_of_pixels_as_mmseg_resizes_them(rng: np.random.Generator, photograph: tuple[int, int]) -> None:
    """resize(logits, size=ori_shape, mode="bilinear", align_corners=False), then the largest."""
    logits = rng.standard_normal((5, 24, 36), np.float32)
    placement = Placement(photograph, (20, 36))
    shown = torch.from_numpy(logits[:, :20])[None].double()
    resized = torch.nn.functional.interpolate(shown, photograph, mode="bilinear", align_corners=False)[0]
    first, second = resized.topk(2, 0).values
    clear = (first - second > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(placement.labels(logits)[clear], resized.argmax(0).numpy()[clear])
