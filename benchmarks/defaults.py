# SPDX-License-Identifier: Apache-2.0
"""How far the rules' defaults are from the best point of their own spaces, over real layers' shapes, on this CPU.

    python benchmarks/defaults.py                             # every layer below, float32, worst first
    python benchmarks/defaults.py --layers 1x1 --dtype bfloat16 --target '{"kind": "llvm", "mcpu": "haswell", ...}'
    python benchmarks/defaults.py --points 40 --json out/defaults.json

All points of a space are timed in turn with the default, the fastest of `--rounds` rounds counts. Nothing else may run
on the machine.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from tvm_involution.bench.machine import describe_machine
from tvm_involution.files import write_json
from tvm_involution.frontend.network import resolve_network
from tvm_involution.nn import Involution2d
from tvm_involution.runtime.threads import thread_count
from tvm_involution.target import resolve_target
from tvm_involution.tuning.measure import Candidate, Measurer
from tvm_involution.tuning.search import PointSearch
from tvm_involution.tuning.tasks import TuningTask, extract_tasks

# channels and pixels as they come in networks, and awkward ones
_SHAPES = [(16, 112), (32, 64), (64, 56), (128, 28), (256, 14), (512, 7), (1024, 14), (2048, 7), (24, 75), (100, 19)]


def layers() -> Iterator[tuple[str, nn.Module, tuple[int, ...]]]:
    """Yield name, layer and shape of the input."""
    for channels, pixels in _SHAPES:
        shape = (1, channels, pixels, pixels)
        for name, out in (("1x1", channels), ("1x1 wider", 4 * channels if channels < 1024 else 512)):
            yield f"{name} {channels} to {out}, {pixels}", nn.Conv2d(channels, out, 1), shape
        if channels <= 512:
            yield f"3x3 {channels}, {pixels}", nn.Conv2d(channels, channels, 3, padding=1), shape
            yield f"3x3/2 {channels}, {pixels}", nn.Conv2d(channels, channels, 3, 2, 1), shape
            yield f"depthwise 5x5 {channels}, {pixels}", nn.Conv2d(channels, channels, 5, 1, 2, 1, channels), shape
        if channels % 16 == 0:
            yield f"involution 7x7 {channels}, {pixels}", Involution2d(channels, 7, 1), shape
    # generators of involutions' kernels: K x K x groups channels
    for channels, out, pixels in (
        (16, 196, 64),
        (32, 392, 32),
        (64, 784, 16),
        (64, 784, 14),
        (16, 36, 56),
        (32, 72, 28),
    ):
        yield f"1x1 kernels {channels} to {out}, {pixels}", nn.Conv2d(channels, out, 1), (1, channels, pixels, pixels)


def points(task: TuningTask, most: int) -> list[Candidate]:
    """Return the default and up to `most` points of the task's space."""
    found = PointSearch(task.mod, task.default, task.spaces, {}).propose(most)
    return [Candidate(sch, task.args_info) for sch in (task.default, *found)]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default="", help="those whose name holds this text")
    parser.add_argument("--target", default="llvm")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--points", type=int, default=600, help="points of a space, at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = resolve_target(arguments.target)
    rows = []
    with Measurer(target, repeat=3) as measurer:
        for name, layer, shape in layers():
            if arguments.layers not in name:
                continue
            network = resolve_network((layer.eval(), torch.zeros(shape)))
            # the layer's longest kernels: the others are the change of layout
            tasks = [task for task in extract_tasks(network, target, dtype=arguments.dtype) if task.spaces]
            for task in itertools.islice((task for task in tasks if not task.name.startswith("transpose")), 2):
                default, *others = measurer.measure(points(task, arguments.points), arguments.rounds)
                best = min((other.seconds for other in (default, *others) if other.seconds is not None), default=None)
                if default.seconds is None or best is None:
                    continue
                row = {
                    "layer": name,
                    "kernel": task.name,
                    "rule": task.rule,
                    "points": len(others) + 1,
                    "default_us": round(default.seconds * 1e6, 1),
                    "best_us": round(best * 1e6, 1),
                    "ratio": round(default.seconds / best, 2),
                }
                rows.append(row)
                print(row, flush=True)
    rows.sort(key=lambda row: -row["ratio"])
    machine = describe_machine(thread_count())
    print(f"\n{' '.join(f'{key}={value}' for key, value in machine.items())}")
    print(f"target {arguments.target}, {arguments.dtype}, worst first")
    for row in rows:
        print(
            f"{row['ratio']:6.2f}x  {row['default_us']:9.1f} us, best {row['best_us']:9.1f}",
            f" {row['rule']}  {row['layer']}",
        )
    if arguments.json:
        write_json(
            arguments.json, {"machine": machine, "target": arguments.target, "dtype": arguments.dtype, "rows": rows}
        )


if __name__ == "__main__":
    main()
