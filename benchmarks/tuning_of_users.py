# SPDX-License-Identifier: Apache-2.0
"""What minutes of tuning bring to networks that the shipped records do not know, beside torch.

    python benchmarks/tuning_of_users.py [--only unet detector rednet26] [--minutes 5] [--json FILE]

Each network is tuned by `tvm_involution.tune` in an empty folder; then torch eager, torch.compile, the rules' defaults
and what tuning found take turns in this process, on all cores. `unet` and `detector` are of `network_list.py`,
`rednet26` is the zoo's at a batch of 2 and 192x192. The table has medians and, for the ratios, the median over the
rounds. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from beside_eager import in_turns
from markdown_rows import print_header, print_row
from network_list import NETWORKS, Network

import tvm_involution as ti
from tvm_involution.bench.machine import describe_machine
from tvm_involution.files import write_json
from tvm_involution.frontend.network import resolve_network
from tvm_involution.runtime.threads import physical_cores
from tvm_involution.tuning.tuner import TuningProgress

_TOLERANCE = 1e-4
_WAYS = ("eager", "torch.compile", "defaults", "tuned")


def rednet26() -> Network:
    """Return the zoo's smallest classifier at a batch and a size that nothing shipped was tuned for."""
    module = resolve_network("rednet26").module
    assert module is not None
    return module, torch.randn(2, 3, 192, 192)


_NETWORKS = {**{name: NETWORKS[name] for name in ("unet", "detector")}, "rednet26": rednet26}


@dataclass(frozen=True)
class Result:
    """What was measured of a network; times in milliseconds."""

    name: str
    shape: tuple[int, ...]
    milliseconds: dict[str, float]
    """medians by way"""
    gain: float
    """median over the rounds of defaults to tuned"""
    beside_torch: float
    """median over the rounds of the better of torch's two to tuned"""
    trials: int
    trials_a_second: float
    first_figure_seconds: float
    """from the call to the first time that is known"""
    error: float
    """of the tuned network, as relative norm"""


def measure(name: str, minutes: float, rounds: int) -> Result:
    """Tune a network, compare it with its module, and time all ways in turns."""
    torch.manual_seed(0)
    module, x = _NETWORKS[name]()
    first: list[float] = []

    def look(run: TuningProgress) -> None:
        if not first and any(state.default_times for state in run.states):
            first.append(run.clock.elapsed)
        print(f"\r{name}: {run.clock.elapsed:4.0f} s, {run.own_trials} trials", end="", file=sys.stderr)

    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        logs, empty = Path(folder, "logs"), Path(folder, "empty")
        empty.mkdir()
        run = ti.tune((module, x), minutes=minutes, log_dir=logs, compare=False, progress=look)
        trials_a_second = run.trials_a_second  # its clock goes on
        print(file=sys.stderr)
        for way, records in (("defaults", empty), ("tuned", logs)):
            ti.compile((module, x), tuning_logs=records).save(Path(folder, f"{way}.so"))
            networks[way] = ti.load(Path(folder, f"{way}.so"))
        inductor = torch.compile(module)
        with torch.inference_mode():
            expected = module(x)
            found = networks["tuned"](x)
            error = max(
                float((a - b).norm() / b.norm()) for a, b in zip(_as_tuple(found), _as_tuple(expected), strict=True)
            )
            if not error < _TOLERANCE:
                sys.exit(f"{name}: relative error {error:.1e}")
            ways = module, inductor, networks["defaults"], networks["tuned"]
            calls = [lambda way=way: way(x) for way in ways]
            in_turns(calls, 5)
            times = in_turns(calls, rounds)
    eager, compiled, defaults, tuned = times
    return Result(
        name=name,
        shape=tuple(x.shape),
        milliseconds=dict(zip(_WAYS, (float(np.median(row)) for row in times), strict=True)),
        gain=float(np.median(defaults / tuned)),
        beside_torch=float(np.median(np.minimum(eager, compiled) / tuned)),
        trials=run.own_trials,
        trials_a_second=trials_a_second,
        first_figure_seconds=first[0],
        error=error,
    )


def _as_tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple | list) else (value,)


def main() -> None:
    """Measure, print a table and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=_NETWORKS, default=list(_NETWORKS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", type=Path)
    words = parser.parse_args()
    torch.set_num_threads(physical_cores())
    machine = {**describe_machine(physical_cores()), "torch": torch.__version__, "minutes": words.minutes}
    print(" ".join(f"{key}={value}" for key, value in machine.items()), "\n")
    columns = [f"{way}, ms" for way in _WAYS]
    print_header(["network", "input", *columns, "defaults / tuned", "torch / tuned", "trials", "a second", "first, s"])
    results = []
    for name in words.only:
        results.append(row := measure(name, words.minutes, words.rounds))
        times = [f"{row.milliseconds[way]:.1f}" for way in _WAYS]
        ratios = f"{row.gain:.2f}", f"{row.beside_torch:.2f}"
        effort = row.trials, f"{row.trials_a_second:.1f}", f"{row.first_figure_seconds:.0f}"
        print_row([name, "x".join(map(str, row.shape)), *times, *ratios, *effort])
    if words.json is not None:
        write_json(words.json, {"machine": machine, "networks": [asdict(result) for result in results]})


if __name__ == "__main__":
    main()
