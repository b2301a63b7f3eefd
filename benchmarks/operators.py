# SPDX-License-Identifier: Apache-2.0
"""A hundred operators with shapes from real networks, on one thread: ours beside torch.

    python benchmarks/operators.py                        # beside torch eager
    python benchmarks/operators.py --inductor             # and torch.compile
    python benchmarks/operators.py --only depthwise conv1d --rounds 50

Every operator is a program of its own, untuned, in float32. As inside a network, activations come and go in the layout
that the contender likes best: ours in channels last, torch in the faster of channels first and channels last. All
contenders of an operator run in turns in one process; the table holds the median of the rounds, and of the ratios of
the best of torch to ours, the worst last. `needs` is what the machine takes at least: the operations at the rate of a
large matrix product, or a copy of as many bytes as inputs, weights and outputs have, whichever is longer.

Nothing else should run on the machine; where something does, look at `least`, the ratio of the shortest times.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["TVM_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import tvm
from markdown_rows import print_header, print_row
from operator_list import OPERATORS, Operator
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tvm import relax

from tvm_involution import lowering
from tvm_involution.bench.machine import describe_machine
from tvm_involution.bench.peak import measure_peak
from tvm_involution.files import write_json
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.runtime.threads import run_on_pool
from tvm_involution.target import host_cpu

# seconds that a contender's calls of one round take, about
_TURN = 0.002
_WARM_UP = 0.05
_TOLERANCE = 1e-4
_PEAKS = 5


@dataclass(frozen=True)
class Result:
    """What was measured of an operator; times in microseconds."""

    name: str
    network: str
    medians: dict[str, float]
    ratio: float
    """median over the rounds of the fastest of torch to ours: above 1 we are faster"""
    least_ratio: float
    """that of the shortest times"""
    needs: float
    rules: str
    """of our kernels, with how often"""
    error: float


class ChannelsLast(nn.Module):
    """A module between activations whose channels are their last axis."""

    def __init__(self, module: nn.Module, rank: int) -> None:
        super().__init__()
        self.module = module
        self.to_first = (0, rank - 1, *range(1, rank - 1))
        self.to_last = (0, *range(2, rank), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the module's result for (N, ..., C), in the same order."""
        return self.module(x.permute(self.to_first)).permute(self.to_last)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="operators whose name has one of these in it")
    parser.add_argument("--inductor", action="store_true", help="torch.compile, too, which takes its time to compile")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def ours(module: nn.Module, x: torch.Tensor) -> tuple[Callable[[], object], Callable[[], np.ndarray], str]:
    """Return a call of the compiled module, one that returns its result, and the rules of its kernels."""
    target = tvm.target.Target({**host_cpu(), "num-cores": 1})
    mod = pipeline.run(import_exported_program(export_module(module, [x])), target)
    rules = [str(func.attrs.get(RULE_ATTR, "none")) for _, func in mod.functions_items() if is_kernel(func)]
    machine = relax.VirtualMachine(lowering.build(mod, target), tvm.cpu())
    array, run = tvm.runtime.tensor(x.numpy()), machine["main"]
    summary = ", ".join(f"{rules.count(rule)} {rule}" for rule in sorted(set(rules)))
    return (lambda: run(array)), (lambda: run(array).numpy()), summary or "no kernel"


def is_kernel(func: object) -> bool:
    """Return whether a function of a compiled module is a tensor program."""
    return isinstance(func, tvm.tirx.PrimFunc)


def microseconds(call: Callable[[], object], count: int) -> float:
    """Return the mean of `count` calls, in the thread that runs our programs."""

    def run() -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return 1e6 * (time.perf_counter() - start) / count

    return run_on_pool(run)


def measure(operator: Operator, rounds: int, inductor: bool, gflops: float) -> Result:
    """Build an operator for all contenders, compare their results, and time them in turns."""
    torch.manual_seed(0)
    module = operator.make().eval()
    x = torch.randn(operator.shape)
    pictures = len(x.shape) in (3, 4) and operator.channels_first
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        expected = module(x)
    to_last = (0, *range(2, x.dim()), 1)
    last = x.permute(to_last).contiguous() if pictures else x
    program, result, rules = ours(ChannelsLast(module, x.dim()) if pictures else module, last)
    exact = expected.permute(to_last).numpy() if pictures else expected.numpy()
    error = float(np.linalg.norm(run_on_pool(result) - exact) / np.linalg.norm(exact))
    if not error < _TOLERANCE:
        sys.exit(f"{operator.name}: relative error {error:.1e}")
    calls: dict[str, Callable[[], object]] = {"ours": program}
    for name, prepare in (("eager", lambda m: m), *([("inductor", torch.compile)] if inductor else [])):
        torch._dynamo.reset()
        calls[name] = _inference(prepare(operator.make().eval()), x)
        if pictures and x.dim() == 4:
            channels_last = operator.make().eval().to(memory_format=torch.channels_last)
            calls[f"{name} channels last"] = _inference(
                prepare(channels_last), x.contiguous(memory_format=torch.channels_last)
            )
    moved = x.numel() + expected.numel() + sum(p.numel() for p in module.parameters())
    source = torch.randn(max(1, moved // 2))
    copy = torch.empty_like(source)
    calls["copy"] = lambda: copy.copy_(source)

    counts = {}
    for name, call in calls.items():
        microseconds(call, 1)
        start, once = time.perf_counter(), microseconds(call, 1)
        while time.perf_counter() - start < _WARM_UP:
            once = microseconds(call, 1)
        counts[name] = max(1, int(1e6 * _TURN / once))
    times = {name: np.array([], np.float64) for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name] = np.append(times[name], microseconds(call, counts[name]))
    medians = {name: float(np.median(values)) for name, values in times.items()}
    peers = [times[name] for name in calls if name not in ("ours", "copy")]
    ratio = min(float(np.median(peer / times["ours"])) for peer in peers)
    least = min(float(peer.min() / times["ours"].min()) for peer in peers)
    operations = counter.get_total_flops() / gflops / 1e3
    return Result(
        operator.name, operator.network, medians, ratio, least, max(operations, medians.pop("copy")), rules, error
    )


def _inference(module: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.inference_mode():
            return module(x)

    return call


def print_table(results: Sequence[Result], contenders: Sequence[str]) -> None:
    """Print a row an operator, the one in which we are slowest beside torch last."""
    columns = [
        "operator",
        "from",
        *(f"{name}, us" for name in contenders),
        "torch / ours",
        "least",
        "needs, us",
        "rules",
    ]
    print()
    print_header(columns)
    for row in sorted(results, key=lambda row: -row.ratio):
        cells = [f"{row.medians[name]:.1f}" if name in row.medians else "" for name in contenders]
        cells += [f"{row.ratio:.2f}", f"{row.least_ratio:.2f}", f"{row.needs:.1f}", row.rules]
        print_row([row.name, row.network, *cells])
    ratios = np.array([row.ratio for row in results])
    print(f"\n{len(ratios)} operators: geometric mean {np.exp(np.log(ratios).mean()):.2f}, {sum(ratios < 1)} below 1")


def main() -> None:
    """Measure, print a table and write a JSON file."""
    words = arguments()
    torch.set_num_threads(1)
    chosen = [operator for operator in OPERATORS if any(part in operator.name for part in words.only)]
    # the best of some: what else runs on the machine makes all of them less
    gflops = max(measure_peak().gflops for _ in range(_PEAKS))
    machine = {**describe_machine(1), "torch": torch.__version__, "peak GFLOP/s": round(gflops)}
    print(" ".join(f"{key}={value}" for key, value in machine.items()))
    results = []
    for operator in chosen:
        try:
            results.append(measure(operator, words.rounds, words.inductor, gflops))
        except (RuntimeError, ValueError) as error:
            print(f"{operator.name}: {str(error).strip().splitlines()[-1]:.200}", file=sys.stderr)
            continue
        print(f"{operator.name}: {results[-1].ratio:.2f}", file=sys.stderr, flush=True)
    kinds = ["eager", "inductor"] if words.inductor else ["eager"]
    print_table(results, ["ours", *(f"{kind}{order}" for kind in kinds for order in ("", " channels last"))])
    if words.json is not None:
        write_json(words.json, {"machine": machine, "operators": [asdict(result) for result in results]})


if __name__ == "__main__":
    main()
