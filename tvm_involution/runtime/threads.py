# SPDX-License-Identifier: Apache-2.0
"""The CPUs that are really there, and one pool of threads on them.

TVM's own pool takes half of the visible CPUs, because it assumes hyper-threads, pins its workers to the first of them
and lets them spin; and every thread that runs a network gets such a pool. Here one executor thread runs all networks
of the process, with one worker a physical core, free to move between the allowed CPUs, which yields a thousand times,
about as long as the gaps between kernels, before it sleeps. So two libraries don't fight, the caller's own threads
are left alone, and a busy neighbour costs its share of the cores: RedNet-50 on two cores takes 30 ms alone (34 where
workers sleep at once) and 60 beside one busy process, where a pinned pool that spins as long as TVM's takes 328.

A forked child has none of these threads, and the runtime's locks as they were: so a fork waits until the call in
progress is done, and the child makes an executor of its own. When the interpreter exits, and Python starts no threads
any more, calls run in the caller's thread.

A call goes to the executor and back by a queue and a lock, without a future and what that can do beside: for a small
network the way there is most of what a call takes.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from ..errors import UserError
from .ffi import tvm_ffi

_T = TypeVar("_T")
# threading::ThreadGroup::AffinityMode of TVM's runtime
_SHARE_ALL_CORES = -3
_MOST_THREADS = 1024
_SYSFS = Path("/sys")


def physical_cores() -> int:
    """Return how many physical cores this process may use: its affinity, without hyper-threads, within its quota."""
    return len(_one_cpu_per_core())


def thread_count() -> int:
    """Return the number of threads to run on: `TVM_NUM_THREADS` where set, else `physical_cores()`.

    Raises:
        UserError: `TVM_NUM_THREADS` is no whole number from 1 to 1024.
    """
    text = os.environ.get("TVM_NUM_THREADS", "").strip()
    if not text:
        return physical_cores()
    wanted = int(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0
    if not 1 <= wanted <= _MOST_THREADS:
        raise UserError(
            f"TVM_NUM_THREADS is {text!r:.40}; expected a whole number from 1 to {_MOST_THREADS}, or leave it unset to "
            f"use the {physical_cores()} cores"
        )
    return wanted


def run_on_pool(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function` in the executor thread and return its result.

    Raises:
        UserError: `TVM_NUM_THREADS` is no number of threads.
    """
    runner = _runner
    if not runner.starts():
        return _run(function, *arguments)
    job = _Job(function, arguments)
    runner.jobs.put(job)
    job.done.acquire()
    if job.error is None:
        return job.result
    try:
        raise job.error
    finally:
        del job  # which its error's traceback would hold


def run_between_calls(function: Callable[..., _T], *arguments: Any) -> _T:
    """Call `function` in this thread while no network runs, and no process forks."""
    with _runner.lock:
        return function(*arguments)


class _Job:
    """A call that waits for the executor thread, and what came of it."""

    __slots__ = ("arguments", "done", "error", "function", "result")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.function, self.arguments = function, arguments
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        """Call the function and wake whoever waits."""
        try:
            self.result = _run(self.function, *self.arguments)
        except BaseException as error:  # the caller's, whatever it is
            self.error = error
        self.done.release()


class _Runner:
    """The executor thread, which starts with the first call, and what a thread must hold to run networks."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        # reentrant, because what runs may itself fork
        self.lock = threading.RLock()
        self.has_pool = threading.local()
        self._started: bool | None = None
        self._starting = threading.Lock()

    def starts(self) -> bool:
        """Return whether the executor thread runs; start it with the first call."""
        if self._started is None:
            with self._starting:
                if self._started is None:
                    self._started = self._start()
        return self._started

    def stop(self) -> None:
        """Wait until the call in progress is done; other threads make no more, and this one makes them itself."""
        self.lock.acquire()
        self._started = False

    def _start(self) -> bool:
        # a daemon, for Python waits for all other threads, which may still call networks
        thread = threading.Thread(target=self._work, name="tvm-involution", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is exiting
            return False
        return True

    def _work(self) -> None:
        while True:
            # no name for it, which would hold its arguments and result until the next
            self.jobs.get().run()


_runner = _Runner()


def _run(function: Callable[..., _T], *arguments: Any) -> _T:
    with _runner.lock:
        if not hasattr(_runner.has_pool, "yes"):
            _configure()
            _runner.has_pool.yes = True
        return function(*arguments)


def _start_anew() -> None:
    global _runner
    _runner = _Runner()


os.register_at_fork(
    before=lambda: _runner.lock.acquire(),
    after_in_parent=lambda: _runner.lock.release(),
    after_in_child=_start_anew,
)


# Python stops daemon threads when it ends; one that it stops within the runtime would abort the process
atexit.register(lambda: _runner.stop())


def _configure() -> None:
    """Make this thread's TVM pool."""
    # read by the pool's workers when they start; the user's own setting wins
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "1000")
    count = thread_count()
    allowed = sorted(os.sched_getaffinity(0))
    # the runtime makes as many workers as CPUs are named, and uses `count` of them
    names = [str(allowed[i % len(allowed)]) for i in range(max(count, len(allowed)))]
    tvm_ffi.get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, names)


def _one_cpu_per_core() -> list[int]:
    """Return one CPU of every physical core in the affinity mask, at most as many as the cgroup's quota pays for."""
    cores: dict[tuple[str, str], int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        topology = _SYSFS / f"devices/system/cpu/cpu{cpu}/topology"
        try:
            key = ((topology / "physical_package_id").read_text(), (topology / "core_id").read_text())
        except OSError:
            key = ("", str(cpu))
        cores.setdefault(key, cpu)
    return sorted(cores.values())[: _quota()]


def _quota() -> int | None:
    try:
        quota, period = (_SYSFS / "fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
