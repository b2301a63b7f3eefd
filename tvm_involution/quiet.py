# SPDX-License-Identifier: Apache-2.0
"""What C and C++ write to standard error past Python, kept from there where an error says it anyway."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Send what the process writes to file descriptor 2 during the block nowhere."""
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
