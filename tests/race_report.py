# SPDX-License-Identifier: Apache-2.0
"""Run the kernels of all GPU rules under the race detector: `PYTHONPATH=. python tests/race_report.py`.

Every rule's programs (`gpu_kernels.py`) with their defaults, some variants of each that a tuner may choose, and
RedNet-50 in float16 at batch 1, 2, 32 and 128; of each kernel some of its blocks. Prints how many kernels were tried,
how many were clean, and what was found in each that was not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import tvm
from cuda_emulator import CudaProgram, build_cuda
from gpu_kernels import gpu_programs
from programs import random_point
from race_detector import find_races
from tvm import s_tir, tirx

from tvm_involution.frontend.network import resolve_network
from tvm_involution.schedules import default_schedule, rules_for
from tvm_involution.target import resolve_target
from tvm_involution.tuning.tasks import extract_programs

PARTS = ("programs", "variants", "network")
ALLOWED = {"NMS": "all threads that find a rival raise one flag, which is read behind a barrier"}
"""rules whose threads write the same value to one place, and why that is right"""


@dataclass(frozen=True)
class Case:
    """A kernel to try."""

    name: str
    rule: str
    build: Callable[[], CudaProgram]
    target: tvm.target.Target


def default_case(name: str, func: tirx.PrimFunc, target: tvm.target.Target) -> Case:
    """Return a program as its first rule schedules it."""
    schedule, rule = default_schedule(func, target)
    return _case(name, rule, schedule or s_tir.Schedule(func), target)


def _case(name: str, rule: str, schedule: s_tir.Schedule, target: tvm.target.Target) -> Case:
    return Case(name, rule, lambda: build_cuda(schedule, target), target)


def program_cases(target: tvm.target.Target) -> Iterator[Case]:
    """Yield every rule's programs with their defaults."""
    for program in gpu_programs(target):
        yield default_case(program.name, program.func, target)


def variant_cases(target: tvm.target.Target, count: int, rng: np.random.Generator) -> Iterator[Case]:
    """Yield `count` random points of the space of each program that has one."""
    for program in gpu_programs(target):
        applied = ((rule.name, rule.apply(program.func, target, True)) for rule in rules_for(target))
        rule, spaces = next(((name, spaces) for name, spaces in applied if spaces is not None), ("", None))
        for i in range(count if spaces else 0):
            with contextlib.redirect_stdout(io.StringIO()):
                point = random_point(rng, program.func, spaces)
            yield _case(f"{program.name}, variant {i}", rule, point, target)


def network_cases(target: tvm.target.Target, model: str, batch: int, dtype: str) -> Iterator[Case]:
    """Yield the kernels of a network, each once."""
    for program in extract_programs(resolve_network(model), target, batch=batch, dtype=dtype):
        yield default_case(f"{model}, batch {batch}, {program.name}", program.mod["main"], target)


def report(cases: Iterable[Case], *, blocks: int, seed: int, jobs: int = 1, verbose: bool = False) -> list[str]:
    """Try kernels, print what is found, and return the names of those that are not clean."""
    bad, tried, began = [], 0, time.monotonic()

    def attempt(case: Case, program: CudaProgram) -> list[str]:
        try:
            found = find_races(program, case.target, blocks=blocks, seed=seed)
        except Exception as error:
            return [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
        return [str(finding) for finding in found if not (finding.harmless and case.rule in ALLOWED)]

    with ThreadPoolExecutor(jobs) as pool:
        # TVM builds in this thread alone, and no further ahead than the pool can take
        pending: list = []

        def finish() -> None:
            case, future = pending.pop(0)
            found = future.result()
            if verbose or found:
                print(f"{case.name} [{case.rule}]: {'clean' if not found else ''}", flush=True)
            for line in found:
                print(f"    {line}", flush=True)
            if found:
                bad.append(case.name)

        for case in cases:
            tried += 1
            pending.append((case, pool.submit(attempt, case, case.build())))
            if len(pending) > jobs:
                finish()
        while pending:
            finish()
    print(f"{tried} kernels tried, {tried - len(bad)} clean, {time.monotonic() - began:.0f} s", flush=True)
    return bad


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, help="one part of the report")
    parser.add_argument("--target", default="nvidia/nvidia-h100")
    parser.add_argument("--model", default="rednet50")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 32, 128])
    parser.add_argument("--variants", type=int, default=3, help="of each program")
    parser.add_argument("--blocks", type=int, default=24, help="of a kernel that run, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="print what is clean, too")
    return parser


def run(words: argparse.Namespace) -> list[str]:
    """Return the names of kernels that are not clean."""
    target, bad = resolve_target(words.target), []
    options = {"blocks": words.blocks, "seed": words.seed, "jobs": words.jobs, "verbose": words.verbose}
    for part in PARTS if words.only is None else (words.only,):
        if part == "programs":
            print("every rule's programs")
            bad += report(program_cases(target), **options)
        elif part == "variants":
            print(f"{words.variants} tuning variants of each")
            bad += report(variant_cases(target, words.variants, np.random.default_rng(words.seed)), **options)
        else:
            for batch in words.batch:
                print(f"{words.model}, {words.dtype}, batch {batch}")
                bad += report(network_cases(target, words.model, batch, words.dtype), **options)
    return bad


if __name__ == "__main__":
    sys.exit(1 if run(parser().parse_args()) else 0)
