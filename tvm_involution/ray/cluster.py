# SPDX-License-Identifier: Apache-2.0
"""A connection to a Ray cluster that says in one line why there is none."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import UserError
from ..extras import missing_extra

_ADDRESS = re.compile(r"(?:ray://)?(\[[0-9a-fA-F:]+\]|[\w.-]+):([0-9]{1,5})")
_REACH_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield the module `ray`, connected to the cluster at `address`, and disconnect it if it was not before.

    Args:
        address: `HOST:PORT` of its head, `ray://HOST:PORT` of its client server, or `auto` for this machine's.

    Raises:
        UserError: no such address, nobody answers there, or Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error, "--ray")) is None:
            raise
        raise missing from error
    if ray.is_initialized():  # the caller's own
        yield ray
        return
    _check(address)
    with _own_signals():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, ImportError) as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise UserError(f"no Ray cluster answers at {address}: {reason}") from error
    try:
        with _without_messages(ray):
            yield ray
    finally:
        ray.shutdown()


def _check(address: str) -> None:
    """Knock at the address, since Ray itself would try for minutes."""
    if address == "auto":
        return
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UserError(f"--ray {address!r:.80} is no address; expected HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), _REACH_SECONDS).close()
    except (OSError, UnicodeError) as error:  # of names that are none
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"no Ray cluster answers at {address}: {reason}; start one with `ray start --head`") from error


@contextmanager
def _without_messages(ray: Any) -> Iterator[None]:
    """Keep Ray from printing what happens to its machines to standard output, among the answers.

    It has no setting for that.
    """
    module = ray._private.worker
    printing = getattr(module, "print_to_stdstream", None)
    module.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        module.print_to_stdstream = printing


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of signals, in whose place Ray puts its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
