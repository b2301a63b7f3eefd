# SPDX-License-Identifier: Apache-2.0
"""Functions in other processes end as they end, and with those who asked for them."""

from __future__ import annotations

import time

import pytest

from tvm_involution.tuning.clock import Clock
from tvm_involution.tuning.workers import Workers


def test_each_job_ends_as_it_ends():
    workers = Workers(1)
    try:
        results = workers.map(lambda x: 10 // x, [(5,), (0,), (2,)], 30)
    finally:
        workers.close()
    assert (results[0], results[2]) == (2, 5) and isinstance(results[1], ZeroDivisionError)


def test_who_waits_may_leave():
    """Neither the job in flight nor those behind it are waited for."""
    workers = Workers(1)

    def leave() -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        workers.map(time.sleep, [(300,)] * 3, 600, leave)
    workers.close()
    workers._threads.shutdown(wait=True)
    assert time.monotonic() - start < 60


def test_time_is_counted_once():
    clock = Clock()
    with clock.spent_in("outer"):
        time.sleep(0.02)
        with clock.spent_in("inner"):
            time.sleep(0.05)
    table = clock.table()
    assert 0.02 <= table["outer"] < table["inner"] + 0.02 and table["inner"] >= 0.05
    assert sum(table.values()) == pytest.approx(clock.elapsed, abs=0.01)
