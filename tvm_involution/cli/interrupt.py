# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, and a request to end, that do not get lost.

A KeyboardInterrupt that Python raises while C++ is calling it back may come out as another exception, or not at all;
and a subprocess of the terminal's process group dies of the same Ctrl-C. So the signal is remembered.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# `timeout` and impatient fingers send a second one while the first is cleaned up after
_TWICE_SECONDS = 1.0

_received: int | None = None
_received_at = 0.0


@contextmanager
def watch_interrupts() -> Iterator[None]:
    """Remember Ctrl-C, SIGTERM or SIGHUP during the block; it raises KeyboardInterrupt, as Ctrl-C ever did."""
    global _received
    _received = None
    # a job in the background of a shell ignores SIGINT, one of nohup SIGHUP, and goes on doing so
    handled = (signal.default_int_handler, signal.SIG_DFL)
    previous = {number: signal.getsignal(number) for number in _SIGNALS if signal.getsignal(number) in handled}
    for number in previous:
        signal.signal(number, _remember)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def received_signal() -> int | None:
    """Return the first signal since `watch_interrupts` began, None where there was none."""
    return _received


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if one got lost; to be called between the phases of long work."""
    if _received is not None:
        raise KeyboardInterrupt


def _remember(number: int, _frame: FrameType | None) -> None:
    global _received, _received_at
    again = _received is not None and time.monotonic() - _received_at < _TWICE_SECONDS
    _received_at = time.monotonic()
    if _received is None:
        _received = number
    if not again:
        raise KeyboardInterrupt
