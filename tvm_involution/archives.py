# SPDX-License-Identifier: Apache-2.0
"""Zip archives, which `.pth`, `.pt2` and `.npz` files are: whole, undamaged, and the same to every reader.

torch's own reader checks no sums. Nor do readers agree on an archive that is made to be read in two ways (two
directories, two entries of one name): what one has vetted another would load. Such an archive is refused.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from .errors import UserError

_END = struct.Struct("<4s4HLLH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as an archive does; how torch tells one from its older format."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def check_zip(path: str | os.PathLike[str]) -> None:
    """Check every entry's CRC-32, and that there is one way only to read the archive.

    An archive that torch wrote without sums (`torch.serialization.set_crc32_options(False)`) has none to check.

    Raises:
        UserError: damaged or truncated, several entries of one name, or anything before, behind or between the parts of
            the archive's directory.
    """
    file = Path(path)
    try:
        with open(file, "rb") as handle, zipfile.ZipFile(handle) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            plain = all(entry.filename == entry.orig_filename for entry in entries)
            if len(names) != len(entries) or not plain or archive.start_dir != _directory(handle):
                raise UserError(f"{file} can be read in more than one way, which is refused; write it again")
            damaged = archive.testzip() if any(entry.CRC for entry in entries) else None
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(f"{file} is damaged or truncated ({error}); copy or fetch it again") from error
    if damaged is not None:
        raise UserError(f"{file} is damaged: the sum of {damaged} does not match; copy or fetch it again")


def _directory(file: BinaryIO) -> int:
    """Return where the directory begins, as the archive's end says it; -1 where it does not say it once."""
    size = file.seek(0, os.SEEK_END)
    file.seek(size - _END.size)
    *_, length, start, comment = _END.unpack(file.read())
    end = size - _END.size
    if size >= _END.size + _LOCATOR.size + _END64.size:
        file.seek(end - _LOCATOR.size - _END64.size)
        *_, length64, start64 = _END64.unpack(file.read(_END64.size))
        signature, _, position, _ = _LOCATOR.unpack(file.read(_LOCATOR.size))
        if signature == b"PK\x06\x07":
            end -= _LOCATOR.size + _END64.size
            if position != end or length not in (length64, 2**32 - 1) or start not in (start64, 2**32 - 1):
                return -1
            length, start = length64, start64
    return start if start + length == end and not comment else -1
