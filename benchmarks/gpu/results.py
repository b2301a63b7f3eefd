# SPDX-License-Identifier: Apache-2.0
"""OUT/results.json: rows by step, written whole after each row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tvm_involution.files import atomic_write

Row = dict[str, Any]
FAILED = "failed"
"""in a row without figures: why there are none"""


class Results:
    """The rows of all steps. A row is told from others by its key: some of its fields."""

    def __init__(self, out: Path) -> None:
        """Read what is there."""
        self._path = out / "results.json"
        self._steps: dict[str, list[Row]] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def rows(self, step: str, /, **key: Any) -> list[Row]:
        """Return the rows of a step whose fields are those of `key`."""
        return [row for row in self._steps.get(step, []) if _fits(row, key)]

    def row(self, step: str, /, **key: Any) -> Row | None:
        """Return the row with figures, None where there is none."""
        return next((row for row in self.rows(step, **key) if FAILED not in row), None)

    def put(self, step: str, key: Row, /, **fields: Any) -> None:
        """Write a row in the place of the one with the same key."""
        rows = self._steps.setdefault(step, [])
        fresh = {**key, **fields}
        for number, row in enumerate(rows):
            if _fits(row, key):
                rows[number] = fresh
                break
        else:
            rows.append(fresh)
        self._write()
        print(step, json.dumps(fresh, default=str), flush=True)

    def _write(self) -> None:
        with atomic_write(self._path) as path:
            path.write_text(json.dumps(self._steps, indent=1, default=str))

    def drop(self, step: str, /, **key: Any) -> None:
        """Forget rows."""
        kept = [row for row in self._steps.get(step, []) if not _fits(row, key)]
        if kept != self._steps.get(step, []):
            self._steps[step] = kept
            self._write()


def rounded(value: float | None, digits: int = 4) -> float | None:
    """Return a number with as many digits as tell something; None for none and NaN."""
    return None if value is None or math.isnan(value) else float(f"{value:.{digits}g}")


def _fits(row: Row, key: Row) -> bool:
    return all(row.get(name) == value for name, value in key.items())
