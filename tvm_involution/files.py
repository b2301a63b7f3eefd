# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends without an exception.

    The temporary file lies in a private folder of the same file system, so it may keep the suffix of `path`
    (tools that look at suffixes work), and is removed on any exception, Ctrl-C included.

    Raises:
        UserError: the folder of `path` is missing or cannot be written, or `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise UserError(f"cannot write {target}: it is a folder; name a file")
    try:
        folder = tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; create the folder or choose one that can be written"
        ) from error
    with folder as name:
        temporary = Path(name) / target.name
        yield temporary
        os.replace(temporary, target)
