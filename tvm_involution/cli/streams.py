# SPDX-License-Identifier: Apache-2.0
"""Standard output and error that take whatever is written: any letter, any name of a file, also when closed."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """Have letters that the output's encoding lacks written as `?`, and a stream that was closed swallow everything."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif name == "stdout" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def can_show(text: str) -> bool:
    """Return whether standard output has all letters of `text`."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def end_output() -> None:
    """Swallow what standard output still holds, which Python would complain about at its end."""
    if sys.stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
