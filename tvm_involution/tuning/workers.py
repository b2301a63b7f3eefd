# SPDX-License-Identifier: Apache-2.0
"""Functions in other processes, each with a time limit: one that crashes or hangs costs itself alone.

TVM's own pool goes through all that is queued before it ends; this one drops it, so that Ctrl-C is quick.
"""

from __future__ import annotations

import queue
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from tvm.support.popen_pool import PopenWorker, kill_child_processes

# how often somebody who waits for results looks whether to go on
_LOOK_SECONDS = 1.0


class _Worker(PopenWorker):
    """A process that another thread may end while one waits for it."""

    def end(self) -> None:
        """End the process; who waits gets a `ChildProcessError`."""
        if (process := self._proc) is not None:
            kill_child_processes(process.pid)
            process.kill()


class Workers:
    """Processes that run functions; each starts with its first and again after a crash."""

    def __init__(self, count: int, uses: int | None = None) -> None:
        """Make `count` workers.

        Args:
            uses: functions after which a process is started anew, for those that leak.
        """
        self._all = [_Worker(maximum_uses=uses, stderr=subprocess.DEVNULL) for _ in range(count)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)
        self._closed = threading.Event()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Start the processes and call `function` in each, in the background."""
        for _ in self._all:
            self._threads.submit(self._call, function, (), None)

    def map(
        self,
        function: Callable[..., Any],
        jobs: Sequence[tuple[Any, ...]],
        seconds: float,
        look: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Return `function(*job)` for each job, or the exception that it ended in: `TimeoutError` after `seconds`.

        Args:
            look: called about once a second; what it raises ends the wait.
        """
        futures = [self._threads.submit(self._call, function, job, seconds) for job in jobs]
        try:
            pending: set[Future[Any]] = set(futures)
            while pending:
                _, pending = wait(pending, _LOOK_SECONDS, FIRST_COMPLETED)
                if pending:
                    look()
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.exception() or future.result() for future in futures]

    def close(self) -> None:
        """End the processes, whatever they are doing; nothing that waits starts any more."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._all:
            worker.end()

    def _call(self, function: Callable[..., Any], job: tuple[Any, ...], seconds: float | None) -> Any:
        worker = self._idle.get()
        try:
            if self._closed.is_set():
                raise ChildProcessError("the workers are closed")
            worker.send(function, job, None, seconds)
            return worker.recv()
        finally:
            self._idle.put(worker)
