# SPDX-License-Identifier: Apache-2.0
"""Zip archives of PyTorch, `.pth` and `.pt2` files: whole, undamaged, no bombs, and the same to every reader.

torch's own reader checks no sums. Nor do readers agree on an archive that is made to be read in two ways (two
directories, two entries of one name): what one has vetted another would load. Such an archive is refused.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from .errors import UserError

_HEADER = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4HLLH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, RuntimeError)


def is_zip(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as an archive does; how torch tells one from its older format."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


@contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Yield an archive of which the directory has been checked, and nothing else read.

    Whoever reads an entry to its end has compared its CRC-32.

    Raises:
        UserError: damaged or truncated, also where that is only seen while it is open; several entries of one name, or
            anything before the entries, behind or between the parts of the directory, so that there is more than one
            way to read it; entries that are compressed, which PyTorch's never are, or larger than the file.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if _is_ambiguous(archive, file):
                raise UserError(f"{path} can be read in more than one way, which is refused; write it again")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise UserError(f"{path} is compressed, which PyTorch's files never are; write it again with PyTorch")
            if sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
                raise UserError(f"{path} says that its entries are larger than itself; copy or fetch it again")
            yield archive
    except UserError:
        raise
    except _UNREADABLE as error:
        raise UserError(
            f"{path} is no archive, or is damaged or truncated ({error}); copy or fetch it again"
        ) from error


def check_archive(path: str | os.PathLike[str]) -> None:
    """Check an archive's directory, and every entry's CRC-32.

    An archive that torch wrote without sums (`torch.serialization.set_crc32_options(False)`) has none to check.

    Raises:
        UserError: as `open_archive`.
    """
    with open_archive(path) as archive:
        damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
        if damaged is not None:
            raise UserError(f"{path} is damaged: the sum of {damaged} does not match; copy or fetch it again")


def read_entry(archive: zipfile.ZipFile, name: str) -> bytearray:
    """Return an entry's bytes, of an archive that has been checked: also of one without sums, which has none to match.

    Raises:
        KeyError: there is no such entry.
        EOFError: the file ends within it.
    """
    entry, file = archive.getinfo(name), archive.fp
    assert file is not None
    file.seek(entry.header_offset)
    *_, name_length, extra_length = _HEADER.unpack(file.read(_HEADER.size))
    file.seek(name_length + extra_length, os.SEEK_CUR)
    content = bytearray(entry.file_size)
    if file.readinto(content) != entry.file_size:  # type: ignore[attr-defined]
        raise EOFError(f"it ends within {name}")
    return content


def _is_ambiguous(archive: zipfile.ZipFile, file: BinaryIO) -> bool:
    """Return whether other readers may find another directory than Python, other entries, or something before them."""
    entries = archive.infolist()
    first = min((entry.header_offset for entry in entries), default=archive.start_dir)
    return (
        len({entry.filename for entry in entries}) < len(entries)
        or any(entry.filename != entry.orig_filename for entry in entries)
        or first != 0
        or archive.start_dir != _directory(file)
    )


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
