# SPDX-License-Identifier: Apache-2.0
"""The tables that benchmarks print are Markdown."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from markdown_rows import print_header, print_row


def test_a_table(capsys):
    print_header(["kernel", "a|b"])
    print_row(["conv2d", 1.5])
    assert capsys.readouterr().out == "| kernel | a/b |\n| --- | --- |\n| conv2d | 1.5 |\n"
