# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C that does not get lost.

A KeyboardInterrupt that Python raises while C++ is calling it back may come out as another exception, or not at all;
and a subprocess of the terminal's process group dies of the same Ctrl-C. So the key press is remembered.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_pressed = False


@contextmanager
def watch_interrupts() -> Iterator[None]:
    """Remember a Ctrl-C during the block; it raises KeyboardInterrupt as ever."""
    global _pressed
    _pressed = False
    previous = signal.getsignal(signal.SIGINT)
    # a job in the background of a shell ignores SIGINT, and goes on doing so
    if previous is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def was_interrupted() -> bool:
    """Return whether Ctrl-C was pressed since `watch_interrupts` began."""
    return _pressed


def check_interrupt() -> None:
    """Raise KeyboardInterrupt if one got lost; to be called between the phases of long work."""
    if _pressed:
        raise KeyboardInterrupt


def _press(_signal: int, _frame: FrameType | None) -> None:
    global _pressed
    _pressed = True
    raise KeyboardInterrupt
