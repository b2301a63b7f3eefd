# SPDX-License-Identifier: Apache-2.0
"""Call the command line in this process, or in one of its own."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tvm_involution.cli import main

TESTS = Path(__file__).parent


@dataclass
class Result:
    """How a command ended."""

    status: int
    out: str
    err: str

    def error_line(self) -> str:
        """Return the only line on standard error of a command that ended with status 2 and printed nothing else."""
        assert (self.status, self.out) == (2, ""), self
        assert self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        return self.err.strip()


def run_cli(*words: object) -> Result:
    """Run the command line with the given words."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    status = end.value.code
    assert isinstance(status, int)
    return Result(status, out.getvalue(), err.getvalue())


def default_signals() -> None:
    """Have a child, as its `preexec_fn`, take signals as a terminal's would: a job in the background ignores Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """Run Python code in a fresh process that sees the tests' modules; return what it prints, fail where it does."""
    words = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
