# SPDX-License-Identifier: Apache-2.0
"""Pictures become inputs as the metadata says; what is no picture is refused."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tvm_involution import UserError
from tvm_involution.runtime import Preprocessing, preprocessing
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
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    np.testing.assert_array_equal(cut, pixels[top : top + 224, left : left + 224])


@pytest.mark.parametrize("size", [(224, 224), (288, 288), (97, 97), (192, 224), (33, 224)])
@pytest.mark.parametrize("shape", [(600, 900), (900, 600), (40, 50), (1, 1), (10, 2000)])
def test_every_picture_fits_every_size(shape: tuple[int, int], size: tuple[int, int]) -> None:
    picture = Image.new("RGB", (shape[1], shape[0]), (10, 200, 30))
    cut = np.asarray(crop_picture(picture, IMAGENET, size))
    assert cut.shape == (*size, 3)
    # the crop lies within the picture: nowhere the black of outside
    assert np.abs(cut.astype(int) - (10, 200, 30)).max() <= 1


# whose long side is cut, and whose offset is rounded to even
_ODD = [(300, 451), (427, 640), (1281, 1920), (257, 258), (256, 257), (451, 300), (333, 500), (97, 2000), (31, 33)]


@pytest.mark.parametrize("shape", _ODD, ids=str)
@pytest.mark.parametrize("size", [(224, 224), (97, 97)], ids=str)
def test_bit_equal_to_torchvision(rng: np.random.Generator, shape: tuple[int, int], size: tuple[int, int]) -> None:
    """`Resize(side)`, `CenterCrop(size)`, their arithmetic as in torchvision/transforms/functional.py."""
    picture = Image.fromarray(random_picture(rng, *shape))
    side = round(256 * max(size) / 224)
    short, long = sorted(picture.size)
    new_short, new_long = side, int(side * long / short)
    new_size = (new_short, new_long) if picture.width <= picture.height else (new_long, new_short)
    resized = picture.resize(new_size, Image.Resampling.BILINEAR)
    top, left = round((resized.height - size[0]) / 2.0), round((resized.width - size[1]) / 2.0)
    expected = resized.crop((left, top, left + size[1], top + size[0]))
    np.testing.assert_array_equal(np.asarray(crop_picture(picture, IMAGENET, size)), np.asarray(expected))


@pytest.mark.parametrize(
    ("shape", "whole", "corner"),
    [
        # int(256 * 451 / 300) = 384 and int(256 * 640 / 427) = 383; (383 - 224) / 2 = 79.5 is rounded to even
        ((300, 451), (256, 384), (16, 80)),
        ((427, 640), (256, 383), (16, 80)),
        ((1281, 1920), (256, 383), (16, 80)),
        ((640, 427), (383, 256), (80, 16)),
        ((400, 603), (256, 385), (16, 80)),
    ],
)
def test_sizes_and_places(
    rng: np.random.Generator, shape: tuple[int, int], whole: tuple[int, int], corner: tuple[int, int]
) -> None:
    """What torchvision's Resize(256) and CenterCrop(224) do, as worked out by hand."""
    picture = Image.fromarray(random_picture(rng, *shape))
    resized = np.asarray(picture.resize(whole[::-1], Image.Resampling.BILINEAR))
    expected = resized[corner[0] : corner[0] + 224, corner[1] : corner[1] + 224]
    np.testing.assert_array_equal(np.asarray(crop_picture(picture, IMAGENET, (224, 224))), expected)


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
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "turned.jpg")), np.rot90(pixels, turns), atol=8)


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
    for path, reason in ((tmp_path / "none.png", "does not exist"), (tmp_path, "is a folder; name a file")):
        with pytest.raises(UserError, match=reason):
            read_picture(path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe or a device; name a file"):
        read_picture(tmp_path / "pipe")


def test_16_bits_become_8(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.integers(0, 2**16, (20, 30), dtype=np.uint16)
    values[0, :2] = 0, 2**16 - 1
    expected = np.rint(values / 257.0)[..., None].repeat(3, 2)
    little, big = Image.fromarray(values), Image.fromarray(values.astype(">u2"))
    little.save(tmp_path / "x.png")
    little.save(tmp_path / "x.tif")
    big.save(tmp_path / "big.tif")
    for name in ("x.png", "x.tif", "big.tif"):
        picture = read_picture(tmp_path / name)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), expected)


def test_floating_point(tmp_path: Path, rng: np.random.Generator) -> None:
    values = rng.random((20, 30), np.float32)
    values[0, :2] = 0, 1
    Image.fromarray(values).save(tmp_path / "x.tif")
    expected = np.rint(values.astype(np.float64) * 255)[..., None].repeat(3, 2)
    np.testing.assert_allclose(np.asarray(read_picture(tmp_path / "x.tif")), expected, atol=1)
    for wrong in (255 * values, values - 0.5, np.where(values > 0.5, np.nan, values)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "wrong.tif")
        with pytest.raises(UserError, match="expected 0 to 1"):
            read_picture(tmp_path / "wrong.tif")
    Image.fromarray(np.full((2, 2), 70000, np.int32)).save(tmp_path / "wide.tif")
    with pytest.raises(UserError, match="whose range is not known"):
        read_picture(tmp_path / "wide.tif")


def test_an_animation_shows_its_first_picture(tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (4, 3), colour) for colour in ((250, 0, 0), (0, 0, 250)))
    for suffix in ("gif", "png", "webp"):
        first.save(tmp_path / f"x.{suffix}", save_all=True, append_images=[second])
        red, _, blue = np.asarray(read_picture(tmp_path / f"x.{suffix}")).mean((0, 1))
        assert red > 200 and blue < 50


def test_transparency_is_left_out(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 3), (10, 200, 30, 0)).save(tmp_path / "x.png")
    Image.new("P", (4, 3), 0).save(tmp_path / "p.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(read_picture(tmp_path / "x.png"))[0, 0].tolist() == [10, 200, 30]
        assert read_picture(tmp_path / "p.png").mode == "RGB"


def test_a_long_thin_picture_takes_no_memory(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole 60000 x 1 pixels would become 15 million x 256. What is cut is what would have been."""
    cut = crop_picture(Image.new("RGB", (60000, 1), (10, 200, 30)), IMAGENET, (224, 224))
    assert np.asarray(cut)[0, 0].tolist() == [10, 200, 30] and cut.size == (224, 224)
    for shape in ((3, 250), (250, 3), (1, 900), (40, 50)):
        picture = Image.fromarray(random_picture(rng, *shape))
        monkeypatch.setattr(preprocessing, "_LONGEST", 10**6)
        whole = np.asarray(crop_picture(picture, IMAGENET, (64, 48)), np.float64)
        monkeypatch.setattr(preprocessing, "_LONGEST", 0)
        np.testing.assert_allclose(np.asarray(crop_picture(picture, IMAGENET, (64, 48))), whole, atol=2)


def test_the_largest_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 100)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "x.png").size == (300, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000)
    with pytest.raises(UserError, match="decompression bomb"):
        read_picture(tmp_path / "x.png")


def test_files_that_start_programs_are_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand EPS to Ghostscript."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "x.png").write_text(text)
    with pytest.raises(UserError, match="is no picture"):
        read_picture(tmp_path / "x.png")
    assert not (tmp_path / "ran").exists()
