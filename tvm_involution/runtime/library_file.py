# SPDX-License-Identifier: Apache-2.0
"""The file format: a shared object with a trailer that can be read, and checked, without loading any code.

    shared object | metadata (JSON, UTF-8) | SHA-256 of all before | length of the JSON (8 bytes, little endian) | magic

What follows the last section of a shared object is ignored by the dynamic linker. The sum is checked before the
file is mapped: a truncated shared object would kill the process with SIGBUS, and a damaged one would run.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from .machine import architecture, missing_features
from .metadata import LibraryMetadata

_MAGIC = b"\x7ftvm-involution\n"
_FOOTER = struct.Struct(f"<32sQ{len(_MAGIC)}s")
_CHUNK = 1 << 20


def seal(path: str | os.PathLike[str], metadata: LibraryMetadata) -> None:
    """Append the trailer with `metadata` to the shared object `path`."""
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
    file = Path(path)
    if not file.is_file():
        raise UserError(f"library {file} does not exist; make it with `tvm-involution compile`")
    size = file.stat().st_size
    try:
        with open(file, "rb") as handle:
            start = size - _FOOTER.size
            handle.seek(max(start, 0))
            footer = handle.read()
            if start < 0 or not footer.endswith(_MAGIC):
                raise UserError(
                    f"{file} is no tvm-involution library, or is truncated; copy it again or compile it again"
                )
            wanted, length, _ = _FOOTER.unpack(footer)
            handle.seek(0)
            if length > start or _digest(handle, start).digest() != wanted:
                raise UserError(f"{file} is damaged (its SHA-256 does not match); copy it again or compile it again")
            handle.seek(start - length)
            return LibraryMetadata.from_json(handle.read(length).decode())
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; check its permissions") from error


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
