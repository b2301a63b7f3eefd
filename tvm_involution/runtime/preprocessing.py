# SPDX-License-Identifier: Apache-2.0
"""From a picture file to a network's input."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..quiet import quiet_stderr
from . import opencv_resize
from .metadata import Preprocessing

# what Pillow logs of a damaged file it raises too
logging.getLogger("PIL").addHandler(logging.NullHandler())

# what Pillow reads by itself; for EPS and others it starts programs
_FORMATS = (
    *("PNG", "JPEG", "MPO", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA", "ICO", "QOI", "PCX"),
    *("SGI", "DDS", "ICNS", "MSP", "SUN", "XBM", "XPM"),
)


def read_picture(path: str | os.PathLike[str]) -> Image.Image:
    """Return the picture in RGB, turned as its EXIF orientation says; the first one of an animation.

    Grey values of 16 bits are brought to 8, those of floating-point files from 0..1 to 0..255. Transparency is left
    out, as by `Image.convert("RGB")`.

    Raises:
        UserError: missing, no picture that Pillow reads, or one whose range of values is not known.
    """
    check_input_file(Path(path))
    return decode_picture(Path(path), os.fspath(path))


def decode_picture(file: Path | BinaryIO, name: str) -> Image.Image:
    """Return the picture of an open file, as `read_picture`; `name` is for messages.

    Raises:
        UserError: as `read_picture`.
    """
    Image.init()
    try:
        formats = [name for name in _FORMATS if name in Image.OPEN]
        # warnings are of large pictures; the largest are an error
        with _without_warnings, Image.open(file, formats=formats) as picture:
            if 0 in picture.size:
                raise UnidentifiedImageError("it has no pixels")
            with _quiet_tiff() if picture.format == "TIFF" else contextlib.nullcontext():
                picture.load()
            if picture.format == "JPEG" and picture.mode == "RGB":
                # the others' copies would take as long again as decoding does
                ImageOps.exif_transpose(picture, in_place=True)
                return picture
            turned = ImageOps.exif_transpose(picture)
            if turned.mode in _DEEP:
                return _to_8_bits(name, turned, picture.format)
            return turned.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever damaged data leads them to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{name} is no picture that can be read ({reason}); expected JPEG, PNG or the like") from error


def check_input_file(file: Path) -> None:
    """Check that `file` can be read.

    Raises:
        UserError: it does not exist, or is a folder or a device.
    """
    if file.is_file():
        return
    if not file.exists():
        raise UserError(f"{file} does not exist; name a picture, or an array in .npy or .npz")
    kind = "a folder" if file.is_dir() else "a pipe or a device"
    raise UserError(f"{file} is {kind}; name a file: a picture, or an array in .npy or .npz")


class _WithoutWarnings:
    """Ignores warnings while any thread is inside: `warnings.catch_warnings` mixes up those of several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._catcher = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._catcher = warnings.catch_warnings()
                self._catcher.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._catcher.__exit__(None, None, None)


_without_warnings = _WithoutWarnings()
_tiff_lock = threading.Lock()


@contextlib.contextmanager
def _quiet_tiff() -> Iterator[None]:
    """Swallow what libtiff says, for one thread after another: standard error is the process's."""
    with _tiff_lock, quiet_stderr():
        yield


_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


def _to_8_bits(name: str, picture: Image.Image, form: str | None) -> Image.Image:
    """Return a grey picture of more than 8 bits in RGB."""
    values = np.asarray(picture)
    if picture.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):
            raise UserError(
                f"{name} holds floating-point values from {values.min():g} to {values.max():g}; expected 0 to 1: scale "
                "them, or save it with 8 bits"
            )
        scaled = values * 255
    elif picture.mode == "I" and form != "PNG":
        raise UserError(f"{name} holds values of 32 bits, whose range is not known; save it with 8 or 16 bits")
    else:
        scaled = values / 257
    return Image.fromarray(np.rint(scaled).astype(np.uint8)).convert("RGB")


# times the network's input: a long, thin picture is not resized as a whole
_LONGEST = 32


def crop_picture(picture: Image.Image, preprocessing: Preprocessing, image_size: tuple[int, int]) -> Image.Image:
    """Resize the short side and cut the centre, as the metadata says, scaled to `image_size` (height, width).

    Sizes and places are those of torchvision's `Resize` and `CenterCrop`, which are mmcls's too.
    """
    assert preprocessing.resize is not None and preprocessing.crop is not None
    height, width = image_size
    # a library compiled for another size keeps the proportion of resized side to crop
    side = round(preprocessing.resize * max(height, width) / preprocessing.crop)
    long = int(side * max(picture.size) / min(picture.size))
    whole = (side, long) if picture.width <= picture.height else (long, side)
    left, top = round((whole[0] - width) / 2), round((whole[1] - height) / 2)
    large = max(whole) > _LONGEST * max(image_size)
    if preprocessing.backend == "opencv":
        # what is cut is all that the NumPy form computes
        resize = opencv_resize.resize_linear if large else opencv_resize.resize
        return Image.fromarray(resize(np.asarray(picture), whole[::-1], (top, left, height, width)))
    if not large:
        return picture.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))
    # only what is cut is resized, which rounds a little differently: the whole would not fit into memory
    across, down = picture.width / whole[0], picture.height / whole[1]
    right, bottom = min((left + width) * across, picture.width), min((top + height) * down, picture.height)
    box = (left * across, top * down, right, bottom)
    return picture.resize((width, height), Image.Resampling.BILINEAR, box)


def resize_picture(picture: Image.Image, preprocessing: Preprocessing, size: tuple[int, int]) -> Image.Image:
    """Return the whole picture in `size` (height, width)."""
    if preprocessing.backend == "opencv":
        return Image.fromarray(opencv_resize.resize(np.asarray(picture), size))
    return picture.resize(size[::-1], Image.Resampling.BILINEAR)


def picture_to_array(picture: Image.Image, preprocessing: Preprocessing) -> np.ndarray:
    """Return the picture as (1, 3, H, W) float32, normalized by the metadata's mean and deviation."""
    pixels, table = np.asarray(picture), _normalised(preprocessing)
    array = np.empty((1, 3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        # looked up in a third of the time that it takes to compute; "clip" writes without a buffer
        np.take(table[channel], pixels[..., channel], out=array[0, channel], mode="clip")
    return array


@functools.lru_cache(maxsize=16)
def _normalised(preprocessing: Preprocessing) -> np.ndarray:
    """Return what each value of a pixel becomes in each channel, (3, 256) float32."""
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    values = np.arange(256, dtype=np.float32)[:, None] - mean
    if preprocessing.backend == "opencv":  # mmcv multiplies by the inverse, in float64
        np.multiply(values, 1 / std.astype(np.float64), out=values, casting="same_kind")
    else:
        values /= std
    return np.ascontiguousarray(values.T)
