# SPDX-License-Identifier: Apache-2.0
"""Arrays of .npy and .npz files. Their headers are compared with the file before memory is taken for what they say."""

from __future__ import annotations

import math
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError
from .preprocessing import check_input_file


def read_array(path: Path) -> np.ndarray:
    """Return the array of a .npy file.

    Raises:
        UserError: it does not exist, is damaged, holds Python objects (a pickle), or less than its header says.
    """
    check_input_file(path)
    try:
        with open(path, "rb") as file:
            return _read(file, path.stat().st_size)
    except Exception as error:  # numpy raises whatever a damaged header leads it to
        raise _unreadable(path, error) from error


def read_arrays(path: Path, names: Sequence[str]) -> list[np.ndarray]:
    """Return the arrays called `names` of a .npz file; others in it are not read.

    Raises:
        UserError: as `read_array`, or one is missing.
    """
    check_input_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise UserError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(members) or 'nothing'}")
            arrays = []
            for name in names:
                with archive.open(members[name]) as file:
                    arrays.append(_read(file, members[name].file_size))
            return arrays
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _read(file: IO[bytes], size: int) -> np.ndarray:
    """Return the array that `file` of `size` bytes begins with."""
    version: Any = np.lib.format.read_magic(file)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read_header:
        raise ValueError(f"version {version} of the format is for arrays of records")
    shape, _, dtype = read_header[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or max(shape, default=0) > sys.maxsize or wanted > size - file.tell():
        raise ValueError(f"its header says {dtype} {list(shape)}, {wanted} bytes, and {size - file.tell()} follow")
    if wanted > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        raise ValueError(f"its header says {dtype} {list(shape)}, more than this machine's memory")
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"{path} holds no array that can be read without pickle ({reason}); write it with numpy.save or numpy.savez"
    )
