# SPDX-License-Identifier: Apache-2.0
"""What tuning brings: RedNets untuned, with the rules' defaults, and with the tuning records, on this CPU.

    python benchmarks/tuning.py                                   # RedNet-26 and RedNet-50, the shipped records
    python benchmarks/tuning.py --models rednet50 --tuning-logs logs --json out/tuning.json

Untuned is TVM's plain lowering of the same fused graph: no schedule at all. All three run in this process, in turns.
Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import tvm_involution as ti
from tvm_involution import compiler
from tvm_involution.files import write_json
from tvm_involution.relax import pipeline
from tvm_involution.runtime.machine import cpu_name

CALLS = 50


def compile_as(way: str, model: str, target: str, logs: Path | None, folder: Path):
    """Return a network compiled `untuned`, with `defaults` only or `tuned`, and its number of recorded kernels."""
    path = folder / f"{way}.so"
    plain = pipeline.phases
    if way == "untuned":
        # leave out the phase that schedules
        compiler.pipeline.phases = lambda *arguments: [
            phase for phase in plain(*arguments) if phase[0] != "schedule kernels"
        ]
    empty = folder / "no-logs"
    empty.mkdir(exist_ok=True)
    try:
        library = ti.compile(model, target, tuning_logs=logs if way == "tuned" else empty)
    finally:
        compiler.pipeline.phases = plain
    library.save(path)
    kernels = library.metadata.kernels
    return ti.load(path), f"{kernels.record}/{kernels.total}"


def measure(model: str, target: str, logs: Path | None) -> dict[str, object]:
    """Return medians in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        networks = {way: compile_as(way, model, target, logs, Path(folder)) for way in ("untuned", "defaults", "tuned")}
        shape = next(iter(networks.values()))[0].metadata.inputs[0].shape[1:]
        x = np.random.default_rng().standard_normal((1, *shape)).astype("float32")
        times: dict[str, list[float]] = {way: [] for way in networks}
        for call in range(CALLS + 5):
            for way, (network, _) in networks.items():
                if way == "untuned" and call >= 8:
                    continue  # seconds each
                start = time.perf_counter()
                network(x)
                if call >= 5:
                    times[way].append((time.perf_counter() - start) * 1e3)
    medians = {way: round(statistics.median(values), 2) for way, values in times.items()}
    return {"model": model, **medians, "recorded": networks["tuned"][1]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rednet26", "rednet50"])
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--tuning-logs", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = [measure(model, arguments.target, arguments.tuning_logs) for model in arguments.models]
    print(f"{cpu_name()}, target {arguments.target}, batch 1, float32, medians in ms")
    for row in rows:
        print(row)
    if arguments.json:
        write_json(arguments.json, {"machine": cpu_name(), "target": arguments.target, "rows": rows})


if __name__ == "__main__":
    main()
