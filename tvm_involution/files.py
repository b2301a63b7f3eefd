# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path; what lies there is at `path` when the block ends without an exception.

    The temporary file lies in a private folder beside the file, so it may keep the suffix of `path` (tools that look
    at suffixes work), is renamed, and is removed on any exception, Ctrl-C included. A link stays, and what it points
    to is replaced. A pipe, a terminal or another character device is written to, and never replaced.

    Raises:
        UserError: `path` is a folder, its folder is missing or cannot be written, the disk is full.
    """
    with _temporary_path(path) as (temporary, put):
        try:
            yield temporary
        except OSError as error:
            if error.errno in _DISK_ERRORS:  # it names the temporary file, or none
                raise _cannot_write(path, error) from error
            raise
        try:
            put(temporary)
        except OSError as error:
            raise _cannot_write(path, error) from error


def write_json(path: str | os.PathLike[str], data: Any) -> None:
    """Write `data` as JSON, whole or not at all.

    Raises:
        UserError: see `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Check, before long work, that `atomic_write` can begin.

    Raises:
        UserError: as `atomic_write`.
    """
    with _temporary_path(path):
        pass


def check_apart(output: Path | None, *inputs: str | os.PathLike[str] | None) -> None:
    """Check that what will be written is none of the files that are read.

    Raises:
        UserError: it is one, also by another name.
    """
    for read in inputs:
        if output is None or read is None or not os.path.isfile(read) or not os.path.exists(output):
            continue
        if os.path.samefile(output, read):
            raise UserError(f"{output} is read, and would be overwritten; name another file for the output")


def check_room(path: str | os.PathLike[str], size: int) -> None:
    """Check that there is room for `size` bytes where `path` will be and in the folder of temporary files.

    LLVM ends the process where a disk is full.

    Raises:
        UserError: there is less.
    """
    file = Path(os.path.realpath(path))
    beside = [file.parent] if file.is_file() or not os.path.lexists(path) else []
    for folder in (*beside, Path(tempfile.gettempdir())):
        if folder.is_dir() and (free := shutil.disk_usage(folder).free) < size:
            raise UserError(
                f"cannot write {path}: it takes {size >> 20} MiB in {folder}, where {free >> 20} are free; make room, "
                "or name another folder, that of temporary files in TMPDIR"
            )


@contextmanager
def _temporary_path(path: str | os.PathLike[str]) -> Iterator[tuple[Path, Callable[[Path], None]]]:
    """Yield a path in a folder of its own, and what puts a file from there to `path`."""
    try:
        mode = _mode(path)
        if mode is None or stat.S_ISREG(mode):
            file = Path(os.path.realpath(path))  # of a link, what it points to
            folder = tempfile.TemporaryDirectory(prefix=f".{file.name[:40]}.", dir=file.parent)
        elif stat.S_ISCHR(mode) or stat.S_ISFIFO(mode):
            file = Path(path)
            folder = tempfile.TemporaryDirectory(prefix="tvm-involution-")
        else:
            raise UserError(f"cannot write {path}: it is {_kind(mode)}; name a file")
    except OSError as error:
        raise _cannot_write(path, error) from error

    def put(temporary: Path) -> None:
        if mode is None or stat.S_ISREG(mode):
            os.replace(temporary, file)
        else:
            with open(temporary, "rb") as whole, open(file, "wb") as device:
                shutil.copyfileobj(whole, device)

    with folder as name:
        yield Path(name) / file.name, put


def _mode(path: str | os.PathLike[str]) -> int | None:
    """Return the mode of what lies at `path`, or where a link there points to; None where there is nothing."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return None


def _kind(mode: int) -> str:
    return "a folder" if stat.S_ISDIR(mode) else "a block device" if stat.S_ISBLK(mode) else "a socket"


def _cannot_write(path: str | os.PathLike[str], error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror}; name a file in a folder that exists and has room")
