# SPDX-License-Identifier: Apache-2.0
"""Where there are no packages for the board, `make test-aarch64` says so and goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_no_packages(tmp_path: Path) -> None:
    script = Path(__file__).with_name("aarch64_machine.py")
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [sys.executable, str(script), str(tmp_path / "machine")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "") and not (tmp_path / "machine" / "ready").exists()
    assert done.stdout.startswith("test-aarch64: not run: the packages for AArch64 are not to be had here (dpkg: ")
    assert done.stdout.count("\n") == 1
