# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, printed row by row as figures come in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_row(cells: Iterable[object]) -> str:
    """Return a row."""
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def markdown_header(columns: Sequence[object]) -> str:
    """Return the two lines that begin a table."""
    return f"{markdown_row(columns)}\n{markdown_row(['---'] * len(columns))}"


def print_header(columns: Sequence[object]) -> None:
    """Print what begins a table."""
    print(markdown_header(columns), flush=True)


def print_row(cells: Iterable[object]) -> None:
    """Print a row at once, whatever the output is buffered by."""
    print(markdown_row(cells), flush=True)
