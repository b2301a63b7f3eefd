# SPDX-License-Identifier: Apache-2.0
"""Processes that do jobs. One that fails, crashes or takes too long is replaced, and costs its own job alone.

After an access outside an array a CUDA context fails whatever it is asked for: so a process is given up at its first
error.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

# before TVM, which looks for the CUDA runtime that torch brings
import torch
from tvm.support.popen_pool import PopenWorker

from tvm_involution.runtime.threads import physical_cores

from .settings import Settings

NO_TIME, OUT_OF_MEMORY = "no time left", "out of memory"
_JOBS_WORTH_A_PROCESS = 3
START_SECONDS = 30.0
"""that a process may take to start"""
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """What a job returned, or why it did not."""

    value: Any = None
    failure: str | None = None


class Worker:
    """A process with a GPU's context of its own; what a job leaves in its modules' variables, the next job finds."""

    def __init__(self, settings: Settings, threads: int | None = None) -> None:
        """Start nothing yet.

        Args:
            threads: of the CPU that jobs may use; all by default.
        """
        self._settings = settings
        self._process = PopenWorker(_prepare, (threads,))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()

    def do(self, job: Callable[..., Any], *arguments: Any, seconds: float) -> Outcome:
        """Have a function called, and wait; `seconds` are cut off at the deadline."""
        seconds = min(seconds, self._settings.seconds_left)
        if seconds <= 0:
            return Outcome(failure=NO_TIME)
        if self._settings.in_process:
            with _ONE_AT_A_TIME, torch.no_grad():
                return _guarded(job, arguments)
        # its own clock does not tick where a library blocks all of its threads
        watch = threading.Timer(seconds + START_SECONDS, self._end)
        watch.start()
        try:
            self._process.send(_guarded, (job, arguments), timeout=seconds)
            outcome = self._process.recv()
        except TimeoutError:
            outcome = Outcome(failure=f"not done after {seconds:.0f} s")
        except Exception as error:  # the process is dead
            outcome = Outcome(failure=one_line(error))
        finally:
            watch.cancel()
        if outcome.failure is not None:
            self._process.kill()
        return outcome

    def _end(self) -> None:
        process = self._process._proc
        if process is not None:
            process.kill()


def do_all(
    settings: Settings, job: Callable[..., Any], arguments: Sequence[tuple], seconds: float, processes: int
) -> Iterator[tuple[int, Outcome]]:
    """Have `job(*arguments[i])` done for all i in several processes; yield i and its outcome as they come."""
    count = max(1, min(processes, len(arguments) // _JOBS_WORTH_A_PROCESS))
    threads = max(1, physical_cores() // count)
    free = [Worker(settings, threads) for _ in range(count)]

    def do(one: tuple) -> Outcome:
        worker = free.pop()
        try:
            return worker.do(job, *one, seconds=seconds)
        finally:
            free.append(worker)

    with ThreadPoolExecutor(count) as pool:
        numbers = {pool.submit(do, one): i for i, one in enumerate(arguments)}
        for future in as_completed(numbers):
            yield numbers[future], future.result()
    for worker in free:
        worker.__exit__()


def one_line(error: BaseException) -> str:
    """Return the gist of an error's message."""
    if OUT_OF_MEMORY in str(error):
        return OUT_OF_MEMORY
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    text = (telling or lines or [""])[-1]
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")


def _prepare(threads: int | None) -> None:
    """Run in a new process, before its first job."""
    if threads is not None:
        os.environ["TVM_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads or physical_cores())
    torch.set_grad_enabled(False)


def _guarded(job: Callable[..., Any], arguments: tuple) -> Outcome:
    try:
        return Outcome(job(*arguments))
    except Exception as error:
        print(traceback.format_exc()[-3000:], flush=True)
        return Outcome(failure=one_line(error))
