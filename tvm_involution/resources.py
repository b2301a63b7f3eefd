# SPDX-License-Identifier: Apache-2.0
"""Where the data folders are, in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def data_dir(name: str) -> Path:
    """Return the folder `name` (`"models"` or `"tuning_logs"`) that ships with the package.

    A wheel carries it inside the package as `_data/NAME`; in a checkout it stands beside the package.

    Raises:
        FileNotFoundError: neither place has it, i.e. the installation is broken.
    """
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"{name}/ is missing beside and inside {_PACKAGE}; reinstall tvm-involution")
