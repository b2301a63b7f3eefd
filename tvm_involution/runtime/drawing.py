# SPDX-License-Identifier: Apache-2.0
"""Pictures of results: boxes with names and scores, masks, and colour maps."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .instances import Instance

_MASK_OPACITY, _MAP_OPACITY = 0.45, 0.6
Colour = tuple[int, int, int]


def draw_instances(picture: Image.Image, found: Sequence[Instance], names: Sequence[str]) -> Image.Image:
    """Return a copy of the picture with every object's box, name, score and mask, best ones on top."""
    pixels = np.asarray(picture, np.float32).copy()
    for instance in reversed(found):
        if instance.mask is not None:
            tint = np.array(class_colour(instance.label), np.float32)
            pixels[instance.mask] += (tint - pixels[instance.mask]) * _MASK_OPACITY
    drawn = Image.fromarray(pixels.round().astype(np.uint8))
    canvas = ImageDraw.Draw(drawn)
    side = max(picture.size)
    font, width = ImageFont.load_default(max(10, side // 60)), max(1, side // 400)
    for instance in reversed(found):
        colour = class_colour(instance.label)
        canvas.rectangle(instance.box, outline=colour, width=width)
        text = f"{names[instance.label]} {instance.score:.0%}"
        left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
        x, y = instance.box[0], max(0.0, instance.box[1] - (bottom - top) - 4)
        canvas.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=colour)
        canvas.text((x + 2 - left, y + 2 - top), text, fill=(255, 255, 255), font=font)
    return drawn


def draw_labels(picture: Image.Image, labels: np.ndarray, colours: Sequence[Colour]) -> Image.Image:
    """Return the picture under the colour map of `labels` (H, W)."""
    colour_map = np.array(colours, np.float32)[labels]
    pixels = np.asarray(picture, np.float32)
    return Image.fromarray((pixels + (colour_map - pixels) * _MAP_OPACITY).round().astype(np.uint8))


def class_colour(label: int) -> Colour:
    """Return a saturated colour; neighbouring classes get hues far apart."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.8)
    return round(red * 255), round(green * 255), round(blue * 255)
