# SPDX-License-Identifier: Apache-2.0
"""The file format: a shared object with a trailer that can be read, and checked, without loading any code.

    shared object | metadata (JSON, UTF-8) | SHA-256 of all before | length of the JSON (8 bytes, little endian) | magic

What follows the last section of a shared object is ignored by the dynamic linker. The sum is checked before the
file is mapped: a truncated shared object would kill the process with SIGBUS, and a damaged one would run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from .machine import architecture, missing_features
from .metadata import LibraryMetadata

_MAGIC = b"\x7ftvm-involution\n"
_FOOTER = struct.Struct(f"<32sQ{len(_MAGIC)}s")
_CHUNK = 1 << 20


def seal(path: str | os.PathLike[str], metadata: LibraryMetadata) -> None:
    """Append the trailer with `metadata` to the shared object `path`.

    Raises:
        UserError: metadata that nobody would be able to read.
    """
    LibraryMetadata.from_json(metadata.to_json())
    text = metadata.to_json().encode()
    with open(path, "r+b") as file:
        digest = _digest(file, os.path.getsize(path))
        digest.update(text)
        file.seek(0, os.SEEK_END)
        file.write(text)
        file.write(_FOOTER.pack(digest.digest(), len(text), _MAGIC))


def read_metadata(path: str | os.PathLike[str]) -> LibraryMetadata:
    """Check the library's sum and return its metadata; works for libraries of any architecture.

    Raises:
        UserError: the file is missing, none of our libraries, truncated or damaged.
    """
    with _open(path) as file:
        try:
            return _read(file, path)[0]
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; copy it again or compile it again") from error


@contextmanager
def private_copy(path: str | os.PathLike[str]) -> Iterator[tuple[Path, LibraryMetadata, str]]:
    """Yield a copy of the library that nobody else writes to, its metadata, and the SHA-256 it was checked against.

    dlopen caches by path and inode, so a library rewritten in place would give the old code; and the file of a loaded
    library may be overwritten, which would crash the process if it were mapped itself. What is checked is the copy:
    the file may change between the check and the copy.

    Raises:
        UserError: as `read_metadata`, or there is no room for the copy, or no code may be loaded from where it lies.
    """
    with _open(path) as source, _temporary_folder(path) as folder:
        copy = Path(folder) / "library.so"
        try:
            with open(copy, "w+b") as file:
                shutil.copyfileobj(source, file, _CHUNK)
                metadata, digest = _read(file, path)
        except OSError as error:
            raise UserError(
                f"cannot copy {path} to {folder}: {error.strerror}; make room there, or set TMPDIR to another folder"
            ) from error
        yield copy, metadata, digest


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"a library is named by its path, got {type(path).__name__}")
    if not os.path.isfile(path):
        what = "is no file" if os.path.exists(path) else "does not exist"
        raise UserError(f"library {path} {what}; make one with `tvm-involution compile`")
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from error


@contextmanager
def _temporary_folder(path: str | os.PathLike[str]) -> Iterator[str]:
    try:
        folder = tempfile.TemporaryDirectory(prefix="tvm-involution-")
    except OSError as error:
        raise UserError(f"cannot copy {path}: {error.strerror or error}; set TMPDIR to a folder with room") from error
    with folder as name:
        if os.statvfs(name).f_flag & os.ST_NOEXEC:
            raise UserError(
                f"cannot load {path}: {Path(name).parent} is mounted noexec, so no code can be loaded from there; set "
                "TMPDIR to a folder where programs may run"
            )
        yield name


def _read(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[LibraryMetadata, str]:
    """Return the metadata of an open library, and its sum; `path` is for messages."""
    start = file.seek(0, os.SEEK_END) - _FOOTER.size
    file.seek(max(start, 0))
    footer = file.read()
    if start < 0 or not footer.endswith(_MAGIC):
        raise UserError(f"{path} is no tvm-involution library, or is truncated; copy it again or compile it again")
    wanted, length, _ = _FOOTER.unpack(footer)
    if length > start or _digest(file, start).digest() != wanted:
        raise UserError(f"{path} is damaged (its SHA-256 does not match); copy it again or compile it again")
    file.seek(start - length)
    try:
        return LibraryMetadata.from_json(file.read(length).decode()), wanted.hex()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged (its metadata is no text); copy it again or compile it again") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check_runnable(path: str | os.PathLike[str], metadata: LibraryMetadata, tvm_version: str) -> None:
    """Check that this machine and this TVM can run the library.

    Raises:
        UserError: another architecture, CPU features that are missing here, or another TVM minor version.
    """
    if architecture(metadata.triple) != architecture():
        raise UserError(
            f"{path} was compiled for {metadata.triple}, this machine is {architecture()}; compile it with --target "
            "llvm here"
        )
    if missing := missing_features(metadata.cpu_features):
        raise UserError(
            f"{path} was compiled for {metadata.cpu} and needs {', '.join(missing)}, which this CPU lacks; compile it "
            "with --target llvm here"
        )
    if metadata.tvm_version.split(".")[:2] != tvm_version.split(".")[:2]:
        raise UserError(
            f"{path} was compiled with TVM {metadata.tvm_version}, this is {tvm_version}; install that version or "
            "compile the library again"
        )


def _digest(file: BinaryIO, size: int) -> hashlib._Hash:
    """Return the running SHA-256 of the first `size` bytes."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        digest.update(chunk)
        size -= len(chunk)
    return digest
