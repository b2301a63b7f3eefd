# SPDX-License-Identifier: Apache-2.0
"""Whole networks as users write them (`network_list.py`), compiled as they are, beside torch eager.

    python benchmarks/networks_of_users.py [--only unet signals] [--threads 1] [--rounds 20] [--json FILE]

Untuned, in float32. Both take turns in one process; the table has the median of the rounds, that of the ratios of torch
to ours, and the ratio of the shortest times, which is the one to look at where something else runs on the machine.
`tvm-involution bench network_list:unet --per-layer`, in this folder, shows the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from network_list import NETWORKS

import tvm_involution as ti
from tvm_involution.bench.machine import describe_machine
from tvm_involution.files import atomic_write
from tvm_involution.frontend.explain import explain
from tvm_involution.frontend.importer import export_module

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Result:
    """What was measured of a network; times in milliseconds."""

    name: str
    shape: tuple[int, ...]
    ours: float
    eager: float
    ratio: float
    """median over the rounds of eager to ours"""
    least_ratio: float
    """that of the shortest times"""
    recognised: int
    """involutions that were found by what they compute"""
    kernels: dict[str, int]
    """by rule"""
    error: float


def milliseconds(call: Callable[[], object]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def measure(name: str, rounds: int) -> Result:
    """Compile a network, compare it with its module, and time both in turns."""
    torch.manual_seed(0)
    module, x = NETWORKS[name]()
    library = ti.compile((module, x))
    with tempfile.TemporaryDirectory() as folder:
        library.save(Path(folder) / "network.so")
        network = ti.load(Path(folder) / "network.so")
    with torch.inference_mode():
        expected = module(x)
        error = float((network(x) - expected).norm() / expected.norm())
        if not error < _TOLERANCE:
            sys.exit(f"{name}: relative error {error:.1e}")
        calls: tuple[Callable[[], object], ...] = (lambda: network(x), lambda: module(x))
        for call in calls * 2:
            call()
        ours, eager = np.array([[milliseconds(call) for call in calls] for _ in range(rounds)]).T
    kernels = library.metadata.kernels
    return Result(
        name=name,
        shape=tuple(x.shape),
        ours=float(np.median(ours)),
        eager=float(np.median(eager)),
        ratio=float(np.median(eager / ours)),
        least_ratio=float(eager.min() / ours.min()),
        recognised=sum(involution.recognised for involution in explain(export_module(module, [x])).involutions),
        kernels=dict(kernels.by_rule),
        error=error,
    )


def main() -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(words.threads)
    torch.set_num_threads(words.threads)
    machine = {**describe_machine(words.threads), "torch": torch.__version__, "tvm-involution": ti.__version__}
    print(" ".join(f"{key}={value}" for key, value in machine.items()), "\n")
    print("| network | input | ours, ms | eager, ms | eager / ours | least | involutions | rules | error |")
    print("|---" * 9 + "|")
    results = []
    for name in words.only:
        results.append(row := measure(name, words.rounds))
        shape, rules = "x".join(map(str, row.shape)), ", ".join(f"{n} {rule}" for rule, n in row.kernels.items())
        print(
            f"| {name} | {shape} | {row.ours:.1f} | {row.eager:.1f} | {row.ratio:.2f} | {row.least_ratio:.2f} | "
            f"{row.recognised} | {rules} | {row.error:.1e} |",
            flush=True,
        )
    if words.json is not None:
        with atomic_write(words.json) as temporary:
            table = {"machine": machine, "networks": [asdict(result) for result in results]}
            temporary.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
