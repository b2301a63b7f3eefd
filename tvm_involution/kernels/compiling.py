# SPDX-License-Identifier: Apache-2.0
"""The process that compiles kernels, from the side of the one that trains."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from .aggregation import Aggregation

# `-m` and `-c` put the current folder first, where a file may be called like a module that the worker needs: in its
# place comes the folder of this package
_START = (
    "import sys; sys.path = [sys.argv.pop(), *filter(None, sys.path)]; import runpy; "
    "runpy.run_module('tvm_involution.kernels.worker', run_name='__main__')"
)

Done = Callable[[str | None], None]
"""called in another thread when a kernel is compiled, with what went wrong or None"""


class Compiling:
    """Compiles one kernel after the other in a process of its own, which starts with the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._asked: deque[Done] = deque()

    def ask(self, operator: str, sizes: Aggregation, target: str, path: Path, done: Done) -> None:
        """Have a kernel written to `path`."""
        line = json.dumps({"operator": operator, "sizes": sizes.to_json(), "target": target, "path": str(path)})
        with self._lock:
            try:
                if self._process is None:
                    self._start()
                assert self._process is not None and self._process.stdin is not None
                self._asked.append(done)
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
                return
            except OSError as error:
                with contextlib.suppress(ValueError):
                    self._asked.remove(done)
                problem = f"the process that compiles cannot be reached: {error}"
        done(problem)

    def _start(self) -> None:
        self._process = process = subprocess.Popen(
            [sys.executable, "-c", _START, str(Path(__file__).parents[2])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # Ctrl-C is for who trains; the worker ends when its standard input does
            start_new_session=True,
        )
        atexit.register(self._end, process, os.getpid())
        threading.Thread(target=self._listen, args=(process,), name="tvm-involution-kernels", daemon=True).start()

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._lock:
                done = self._asked.popleft() if self._asked else None
            if done is not None:
                done(json.loads(line))
        with self._lock:
            left, self._asked = self._asked, deque()
            self._process = None
        for done in left:
            done(f"the process that compiles ended with status {process.wait()}")

    def _end(self, process: subprocess.Popen[str], parent: int) -> None:
        """End the process, unless this is a forked child of who started it; nobody waits for its answers any more."""
        if os.getpid() == parent:
            with self._lock:
                self._asked.clear()
            process.send_signal(signal.SIGINT)  # so that it leaves no half file behind
