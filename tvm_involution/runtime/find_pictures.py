# SPDX-License-Identifier: Apache-2.0
"""Which files are meant: pictures by name, all of a folder, all that fit a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import UserError
from .preprocessing import check_input_file

SUFFIXES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".jp2", ".j2k"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".ico", ".qoi", ".pcx"),
    )
)
"""of what is taken in a folder for a picture"""
_WILD = re.compile(r"[*?\[]")


def find_pictures(given: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Return the files that `given` means, each once, folders' and patterns' in natural order (2 before 10).

    Args:
        given: files; folders, of which all pictures are meant, those of folders inside too, hidden ones not; patterns
            with `*`, `?`, `[...]` and `**`.

    Raises:
        UserError: there is no such file, or no picture in a folder or for a pattern.
    """
    found: dict[str, None] = {}
    for entry in (os.fspath(path) for path in given):
        if os.path.isdir(entry):
            pictures = _in_folder(entry)
            if not pictures:
                raise UserError(f"{entry} has no pictures in it; expected files such as .jpg or .png")
        elif not os.path.exists(entry) and _WILD.search(entry):
            matches = sorted(glob.glob(entry, recursive=True), key=_natural)
            pictures = [path for path in matches if os.path.isfile(path)]
            if not pictures:
                raise UserError(f"no file fits {entry}; expected a pattern such as 'photos/*.jpg'")
        else:
            check_input_file(Path(entry))
            pictures = [entry]
        found.update(dict.fromkeys(pictures))
    return list(found)


def _in_folder(folder: str) -> list[str]:
    pictures = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if not name.startswith("."))
        pictures += [os.path.join(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
    return sorted(pictures, key=_natural)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _natural(path: str) -> list[tuple[int, str]]:
    parts = re.split(r"([0-9]+)", path)
    return [(int(part) if part.isdecimal() and len(part) < 19 else -1, part) for part in parts]
