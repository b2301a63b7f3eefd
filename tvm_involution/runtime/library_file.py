# SPDX-License-Identifier: Apache-2.0
"""The file format: a shared object with a trailer that can be read, and checked, without loading any code.

    shared object | weights | metadata (JSON, UTF-8) | SHA-256 of all before | length of the JSON (8 bytes) | magic

What follows the last section of a shared object is ignored by the dynamic linker. The sum is checked before anything
is mapped: a truncated shared object would kill the process with SIGBUS, and a damaged one would run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import UserError
from .machine import architecture, missing_features
from .mapped_weights import MappedWeights
from .metadata import WEIGHT_ALIGNMENT, LibraryMetadata, WeightSpec

_MAGIC = b"\x7ftvm-involution\n"
_FOOTER = struct.Struct(f"<32sQ{len(_MAGIC)}s")
_CHUNK = 1 << 20


def seal(
    path: str | os.PathLike[str], metadata: LibraryMetadata, weights: Sequence[tuple[str, np.ndarray]] = ()
) -> None:
    """Append `weights` and the trailer with `metadata` to the shared object `path`.

    Args:
        metadata: all but its `weights`, which are written here.
        weights: dtype and value of each; the dtype is TVM's name, which numpy may not know.

    Raises:
        UserError: metadata that nobody would be able to read.
    """
    with open(path, "r+b") as file:
        specs = []
        position = file.seek(0, os.SEEK_END)
        for dtype, value in weights:
            position += file.write(bytes(-position % WEIGHT_ALIGNMENT))
            specs.append(WeightSpec(dtype, value.shape, position))
            position += file.write(value.tobytes())
        text = dataclasses.replace(metadata, weights=tuple(specs)).to_json()
        LibraryMetadata.from_json(text)
        digest = _digest(file, position)
        digest.update(text.encode())
        file.seek(0, os.SEEK_END)
        file.write(text.encode())
        file.write(_FOOTER.pack(digest.digest(), len(text.encode()), _MAGIC))


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


@dataclasses.dataclass(frozen=True)
class OpenedLibrary:
    """A library whose sum was right."""

    code: Path
    """a copy of its shared object that nobody else writes to"""
    metadata: LibraryMetadata
    digest: str
    """the SHA-256 that it was checked against"""
    weights: MappedWeights | None
    """None where it has none outside the shared object"""


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[OpenedLibrary]:
    """Yield the library, with a copy of its code that is removed afterwards, and its weights mapped from the file.

    dlopen caches by path and inode, so a library rewritten in place would give the old code, and would crash the
    process: so the code is copied, and what is copied is what was checked. The weights are not: all processes that load
    the library have them in memory once.

    Raises:
        UserError: as `read_metadata`, or there is no room for the copy, or no code may be loaded from where it lies.
    """
    with _open(path) as source, _temporary_folder(path) as folder:
        copy = Path(folder) / "library.so"
        try:
            with open(copy, "wb") as file:
                before = MappedWeights.state_of(source)
                metadata, digest = _read(source, path, file)
        except OSError as error:
            raise UserError(
                f"cannot copy {path} to {folder}: {error.strerror}; make room there, or set TMPDIR to another folder"
            ) from error
        weights = MappedWeights(source, path, metadata.weights, before) if metadata.weights else None
        yield OpenedLibrary(copy, metadata, digest, weights)


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


def _read(file: BinaryIO, path: str | os.PathLike[str], copy: BinaryIO | None = None) -> tuple[LibraryMetadata, str]:
    """Return the metadata of an open library, and its sum; `path` is for messages.

    Args:
        copy: where to write the shared object.
    """
    start = file.seek(0, os.SEEK_END) - _FOOTER.size
    file.seek(max(start, 0))
    footer = file.read(_FOOTER.size)
    if start < 0 or not footer.endswith(_MAGIC):
        raise UserError(f"{path} is no tvm-involution library, or is truncated; copy it again or compile it again")
    wanted, length, _ = _FOOTER.unpack(footer)
    damaged = UserError(f"{path} is damaged (its SHA-256 does not match); copy it again or compile it again")
    if length > start:
        raise damaged
    file.seek(start - length)
    text = file.read(length)
    metadata, problem = _parse(text, path)
    # what cannot be read is refused when it is known not to be damaged
    weights = metadata.weights if metadata is not None else ()
    digest = _digest(file, start - length, copy, weights[0].offset if weights else start - length)
    digest.update(text)
    if digest.digest() != wanted:
        raise damaged
    if metadata is None:
        raise problem or damaged
    if weights and weights[-1].offset + weights[-1].bytes > start - length:
        raise UserError(f"{path} is damaged (it ends before its weights do); copy it again or compile it again")
    return metadata, wanted.hex()


def _parse(text: bytes, path: str | os.PathLike[str]) -> tuple[LibraryMetadata | None, UserError | None]:
    """Return the metadata, or why there are none."""
    try:
        return LibraryMetadata.from_json(text.decode()), None
    except UnicodeDecodeError:
        return None, UserError(f"{path} is damaged (its metadata is no text); copy it again or compile it again")
    except UserError as error:
        return None, UserError(f"{path}: {error}")


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


def _digest(file: BinaryIO, size: int, copy: BinaryIO | None = None, copied: int = 0) -> hashlib._Hash:
    """Return the running SHA-256 of the first `size` bytes, of which the first `copied` are written to `copy`."""
    digest = hashlib.sha256()
    file.seek(0)
    position = 0
    while position < size and (chunk := file.read(min(_CHUNK, size - position))):
        digest.update(chunk)
        if copy is not None and position < copied:
            copy.write(memoryview(chunk)[: copied - position])
        position += len(chunk)
    return digest
