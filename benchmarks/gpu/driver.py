# SPDX-License-Identifier: Apache-2.0
"""Run the steps, each in a process of its own with a share of the time."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

from .results import FAILED, Results
from .settings import Settings, parser, settings_of

STEPS = {
    "machine": 1.2,
    "check": 3.0,
    "networks": 6.0,
    "operators": 2.5,
    "layers": 1.5,
    "tune": 3.5,
    "tuned": 2.0,
    "draw": 0.3,
}
"""step -> its share of the time that is left when it begins, among the shares of those that are still to come"""
_GRACE = 20.0
"""seconds between the end of a step's time, when it starts nothing more, and that of its process"""


def main(description: str | None) -> None:
    """Run the steps that the command line names; or, inside, one of them."""
    words = parser(description, tuple(STEPS)).parse_args()
    if unknown := [step for step in words.only if step not in STEPS]:
        sys.exit(f"unknown step {unknown[0]!r}; expected some of {', '.join(STEPS)}")
    settings = settings_of(words)
    if words.step is None and settings.on_gpu and words.only != ("draw",):
        check_gpu()
    settings.out.mkdir(parents=True, exist_ok=True)
    if words.step is None:
        # the others need the machine's roofs, and tables are what is read
        around = () if words.only == ("draw",) else ("machine", "draw")
        run_steps(settings, [step for step in STEPS if step in (*words.only, *around)])
    else:
        run_step(words.step, settings)


def run_steps(settings: Settings, steps: list[str]) -> None:
    """Run steps one after another within the time; what they print goes to OUT/log.txt."""
    shutil.rmtree(settings.scratch, ignore_errors=True)  # code of an earlier version
    with (settings.out / "log.txt").open("a") as log:
        for number, step in enumerate(steps):
            share = STEPS[step] / sum(STEPS[other] for other in steps[number:])
            seconds = max(5.0, (settings.seconds_left - _GRACE) * share)
            if settings.in_process:
                run_step(step, replace(settings, deadline=time.time() + seconds))
                continue
            print(f"{step}: at most {seconds:.0f} s", flush=True)
            log.write(f"\n==== {step}, {time.strftime('%F %T')}\n")
            log.flush()
            began = time.monotonic()
            status = _run_process(step, seconds, log)
            results = Results(settings.out)
            if status != "done" and not results.rows("failures", step=step):
                results.put("failures", {"step": step}, **{FAILED: status})
            print(f"  {status} after {time.monotonic() - began:.0f} s", flush=True)


def run_step(step: str, settings: Settings) -> None:
    """Run one step in this process; an error is a row of the results, too."""
    results = Results(settings.out)
    results.drop("failures", step=step)
    module = {"tuned": "networks"}.get(step, step)
    try:
        getattr(importlib.import_module(f".steps.{module}", __package__), step)(settings, results)
    except Exception as error:
        traceback.print_exc()
        results.put("failures", {"step": step}, **{FAILED: f"{type(error).__name__}: {error}"[:500]})
        sys.exit(1)


def check_gpu() -> None:
    """Exit where there is no GPU."""
    from tvm_involution.target import gpu_problem

    if problem := gpu_problem():
        sys.exit(f"{problem}; --target llvm tries the benchmark on the CPU")


def _run_process(step: str, seconds: float, log) -> str:
    command = [sys.executable, str(Path(__file__).parent), *sys.argv[1:], "--step", step]
    command += ["--deadline", str(time.time() + seconds)]
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        status = process.wait(seconds + _GRACE)
        return "done" if status == 0 else f"failed ({status}): see log.txt"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # tuning writes its records
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE / 2)
        return "stopped"
    finally:
        # its workers and their compilers, too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
