# SPDX-License-Identifier: Apache-2.0
"""The error a user can cause and mend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Wrong use or bad input.

    The message is one line: what was wrong, what was expected, and what to do. The command line prints it
    to standard error and exits with status 2; from Python it is an ordinary `ValueError`.
    """


@contextmanager
def told_in_one_line(doing: str) -> Iterator[None]:
    """Raise whatever the block raises as a `UserError` that begins with what was being done."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UserError(f"{doing}: {type(error).__name__}: {lines[0] if lines else 'no reason given'}") from error
