# SPDX-License-Identifier: Apache-2.0
"""What the documentation names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_traps_are_guarded() -> None:
    """Each trap of docs/tvm-traps.md names files of the package and a test, which exist."""
    rows = re.findall(r"^\|(.*)\|(.*)\|(.*)\|$", (ROOT / "docs" / "tvm-traps.md").read_text(), re.MULTILINE)[2:]
    assert len(rows) > 5
    for _, avoided, guarded in rows:
        files = re.findall(r"`([\w/]+\.py)`", avoided)
        assert files and all((ROOT / "tvm_involution" / file).is_file() for file in files), avoided
        (test,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", guarded)
        assert f"def {test[1]}(" in (ROOT / test[0]).read_text(), guarded


def test_links_of_pages() -> None:
    """Links to files of the repository lead somewhere."""
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
