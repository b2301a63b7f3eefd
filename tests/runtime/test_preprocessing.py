# SPDX-License-Identifier: Apache-2.0
"""Pictures become inputs as the metadata says; what is no picture is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_involution import UserError
from tvm_involution.runtime import Preprocessing
from tvm_involution.runtime.preprocessing import crop_picture, picture_to_array, read_picture

IMAGENET = Preprocessing(256, 224, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def random_picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalization(rng: np.random.Generator) -> None:
    pixels = random_picture(rng, 5, 7)
    array = picture_to_array(Image.fromarray(pixels), IMAGENET)
    assert (array.shape, array.dtype) == ((1, 3, 5, 7), np.float32)
    assert array.flags.c_contiguous
    reference = (pixels.astype(np.float64) - IMAGENET.mean) / IMAGENET.std
    np.testing.assert_allclose(array[0], reference.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 401), (331, 256)])
def test_centre_crop(rng: np.random.Generator, height: int, width: int) -> None:
    """The short side already has the wanted length: only the centre is cut, nothing is resampled."""
    pixels = random_picture(rng, height, width)
    cut = np.asarray(crop_picture(Image.fromarray(pixels), IMAGENET, (224, 224)))
    top, left = (height - 224) // 2, (width - 224) // 2
    np.testing.assert_array_equal(cut, pixels[top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(224, 224), (288, 288), (97, 97), (192, 224), (33, 224)])
@pytest.mark.parametrize("shape", [(600, 900), (900, 600), (40, 50), (1, 1), (10, 2000)])
def test_every_picture_fits_every_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (shape[1], shape[0]), (10, 200, 30))
    cut = np.asarray(crop_picture(picture, IMAGENET, size))
    assert cut.shape == (*size, 3)
    # the crop lies within the picture: nowhere the black of outside
    assert np.abs(cut.astype(int) - (10, 200, 30)).max() <= 1


def test_bilinear_resize_keeps_a_ramp() -> None:
    """A ramp of 512 columns at half its size: bilinear resampling averages neighbours, so a ramp stays one."""
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (512, 512, 3))
    cut = np.asarray(crop_picture(Image.fromarray(ramp.round().astype(np.uint8)), IMAGENET, (224, 224)), np.float64)
    columns = (np.arange(224) + 16 + 0.5) * 2 - 0.5
    np.testing.assert_allclose(cut[100, :, 0], columns * 255 / 511, atol=1.0)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_orientation(tmp_path: Path, orientation: int, turns: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_picture(tmp_path / "turned.png")), np.rot90(pixels, turns))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(tmp_path / f"white.{suffix}")
    picture = read_picture(tmp_path / f"white.{suffix}")
    assert picture.mode == "RGB"
    assert np.asarray(picture).min() >= 250


def test_what_is_no_picture(tmp_path: Path, rng: np.random.Generator) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(random_picture(rng, 64, 64)).save(whole)
    file = tmp_path / "file.jpg"
    for content in (b"", b"not a picture", rng.bytes(500), whole.read_bytes()[:3000]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is no picture that can be read") as caught:
            read_picture(file)
        assert str(file) in str(caught.value)
    for missing in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UserError, match="does not exist"):
            read_picture(missing)
