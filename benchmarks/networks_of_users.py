# SPDX-License-Identifier: Apache-2.0
"""Whole networks as users write them (`network_list.py`), compiled as they are, beside torch eager.

    python benchmarks/networks_of_users.py [--only unet signals] [--threads 1] [--rounds 20] [--json FILE]

Untuned, in float32. Both take turns in one process; the table has the median of the rounds, that of the ratios of torch
to ours, and the ratio of the shortest times, which is the one to look at where something else runs on the machine.
`tvm-involution bench network_list:unet --per-layer`, in this folder, shows the kernels.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from beside_eager import compiled, in_turns
from markdown_rows import print_header, print_row
from network_list import NETWORKS

from tvm_involution.bench.machine import describe_machine
from tvm_involution.files import write_json
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


def measure(name: str, rounds: int) -> Result:
    """Compile a network, compare it with its module, and time both in turns."""
    torch.manual_seed(0)
    module, x = NETWORKS[name]()
    library, network = compiled(module, x)
    with torch.inference_mode():
        expected = module(x)
        error = float((network(x) - expected).norm() / expected.norm())
        if not error < _TOLERANCE:
            sys.exit(f"{name}: relative error {error:.1e}")
        calls: tuple[Callable[[], object], ...] = (lambda: network(x), lambda: module(x))
        for call in calls * 2:
            call()
        ours, eager = in_turns(calls, rounds)
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
    machine = {**describe_machine(words.threads), "torch": torch.__version__}
    print(" ".join(f"{key}={value}" for key, value in machine.items()), "\n")
    print_header(
        ["network", "input", "ours, ms", "eager, ms", "eager / ours", "least", "involutions", "rules", "error"]
    )
    results = []
    for name in words.only:
        results.append(row := measure(name, words.rounds))
        shape, rules = "x".join(map(str, row.shape)), ", ".join(f"{n} {rule}" for rule, n in row.kernels.items())
        times = f"{row.ours:.1f}", f"{row.eager:.1f}", f"{row.ratio:.2f}", f"{row.least_ratio:.2f}"
        print_row([name, shape, *times, row.recognised, rules, f"{row.error:.1e}"])
    if words.json is not None:
        write_json(words.json, {"machine": machine, "networks": [asdict(result) for result in results]})


if __name__ == "__main__":
    main()
