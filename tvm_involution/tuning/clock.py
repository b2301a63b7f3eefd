# SPDX-License-Identifier: Apache-2.0
"""Where the time of a run goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds by what they went into; time inside another's is the inner one's alone."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @contextmanager
    def spent_in(self, what: str) -> Iterator[None]:
        """Count the block's time as `what`."""
        start = time.monotonic()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - start
            self.seconds[what] = self.seconds.get(what, 0.0) + whole - self._inner.pop()
            self._inner[-1] += whole

    def table(self) -> dict[str, float]:
        """Return the seconds by what they went into, the most first, with what is left as `other`."""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        return {**dict(rows), "other": max(0.0, self.elapsed - sum(self.seconds.values()))}
