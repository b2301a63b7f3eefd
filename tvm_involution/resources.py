# SPDX-License-Identifier: Apache-2.0
"""Where the data folders are, in a checkout and in an installed wheel alike; and the user's own."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def user_dir(variable: str, *otherwise: str) -> Path:
    """Return the package's folder in a user's directory of the XDG specification; it may not exist.

    Args:
        variable: the environment's word for it, `XDG_CACHE_HOME`.
        otherwise: where it is below the home directory, if that is unset.
    """
    return Path(os.environ.get(variable) or Path.home().joinpath(*otherwise)) / "tvm-involution"


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
