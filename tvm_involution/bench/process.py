# SPDX-License-Identifier: Apache-2.0
"""The parent's side of a worker: start it, talk to it within a time limit, end it with all its children."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..errors import UserError
from .subject import Subject

# `-m` and `-c` put the current folder first, where a file may be called like a module that the worker needs: in its
# place comes the folder of this package
_START = (
    "import sys; sys.path = [sys.argv.pop(), *filter(None, sys.path)]; import runpy; "
    "runpy.run_module('tvm_involution.bench.worker', run_name='__main__')"
)


class WorkerError(Exception):
    """A worker failed; the message is one line."""


class Worker:
    """A process that does one step for one contender (`worker`); a context manager that ends it."""

    def __init__(self, step: str, subject: Subject, contender: str, timeout: float, show_output: bool = False) -> None:
        """Start the process.

        Args:
            contender: `module:class`.
            timeout: seconds that an answer may take.
            show_output: let what the libraries print through to standard error.
        """
        self._timeout = timeout
        self._log = None if show_output else tempfile.TemporaryFile()  # noqa: SIM115
        count = str(subject.threads)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **dict.fromkeys(names, count)},
            # a group of its own: Ctrl-C reaches the parent alone, which ends the group
            start_new_session=True,
        )
        self._unread = b""
        try:
            self._send(json.dumps({"step": step, "contender": contender, "subject": subject.to_json()}))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, calls: int) -> dict[str, Any]:
        """Have a turn of `calls` inferences timed; see `answer`."""
        self._send(str(calls))
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the worker's next answer.

        Raises:
            UserError: the worker met one.
            WorkerError: the worker failed, crashed, or took too long.
        """
        fields = json.loads(self._read_line())
        if "error" not in fields:
            return fields
        raise (UserError if fields["users_error"] else WorkerError)(fields["error"])

    def close(self) -> None:
        """Kill the process and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        if self._log is not None:
            self._log.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead; reading its answer says why
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        deadline = time.monotonic() + self._timeout
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise WorkerError(f"no answer within {self._timeout:.0f} s")
            data = os.read(self._process.stdout.fileno(), 1 << 16)
            if not data:
                raise WorkerError(self._last_words())
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def _last_words(self) -> str:
        status = self._process.wait()
        ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        lines = []
        if self._log is not None:
            self._log.seek(0)
            lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{ended}: {lines[-1]}" if lines else ended
