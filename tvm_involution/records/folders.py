# SPDX-License-Identifier: Apache-2.0
"""Where tuning logs are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UserError
from ..resources import data_dir, user_dir


def user_folder() -> Path:
    """Return the user's own folder of tuning logs, `$XDG_DATA_HOME/tvm-involution/tuning_logs`, which may not exist."""
    return user_dir("XDG_DATA_HOME", ".local", "share") / "tuning_logs"


def log_folders(named: str | os.PathLike[str] | None) -> list[Path]:
    """Return the folders to look in: the one that was named, else the user's own and the shipped ones.

    Raises:
        UserError: `named` does not exist.
    """
    if named is None:
        return [user_folder(), data_dir("tuning_logs")]
    if not os.path.isdir(named):
        raise UserError(f"tuning logs {named} do not exist; name a folder with one folder a target, or leave it out")
    return [Path(named)]
