# SPDX-License-Identifier: Apache-2.0
"""RedNet and ResNet on this CPU: the README's table and chart.

    python benchmarks/cpu.py                                  # RedNet-50 and ResNet-50, batch 1, float32
    python benchmarks/cpu.py --dtype bfloat16
    python benchmarks/cpu.py --models rednet26 resnet50 --batch 1 8 --json out/cpu.json --chart out/cpu.png

Several networks beside each other, all in one run; `tvm-involution bench` does the same for one, and docs/benchmarks.md
says how. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from markdown_rows import print_header, print_row

from tvm_involution.bench.chart import draw_chart
from tvm_involution.bench.compare import compare
from tvm_involution.bench.contenders import OURS, PEERS, select_peers
from tvm_involution.bench.effort import Effort
from tvm_involution.bench.result import Comparison
from tvm_involution.bench.subject import Subject
from tvm_involution.errors import UserError
from tvm_involution.files import write_json
from tvm_involution.runtime.metadata import DTYPES
from tvm_involution.runtime.threads import thread_count


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [contender.name for contender in (OURS, *PEERS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rednet50", "resnet50"])
    parser.add_argument("--against", nargs="+", choices=names, help="[default: those installed] ours always runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="one table and chart for each size")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=10, help="inferences a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--debug", action="store_true", help="show what the contenders print")
    return parser.parse_args()


def print_markdown(comparison: Comparison) -> None:
    """Print a table whose ratios are to ResNet in the best peer."""
    print(" ".join(f"{key}={value}" for key, value in comparison.machine.items()))
    print(f"{comparison.title()}\n")
    timed = [result for result in comparison.results if result.median_ms is not None]
    columns = ["network", "in", "median ms", "min ms", "against the best peer's ResNet of that depth", "relative error"]
    print_header(columns)
    for row in timed:
        depth = row.network.removeprefix("rednet").removeprefix("resnet")
        peers = [r.median_ms for r in timed if r.network == f"resnet{depth}" and r.contender != OURS.name]
        ratio = f"{row.median_ms / min(peers):.2f}x" if peers else "-"
        figures = [f"{row.median_ms:.1f}", f"{row.min_ms:.1f}", ratio, f"{row.relative_error:.0e}"]
        print_row([row.network, f"{row.contender} {row.version}", *figures])
    for row in comparison.results:
        if row.failure is not None:
            print(f"\n{row.contender} failed on {row.network}: {row.failure}")


def main() -> None:
    """Run the comparison, once for each batch size."""
    words = arguments()
    peers = select_peers(words.against and [name for name in words.against if name != OURS.name])
    effort = Effort(words.rounds, words.calls, show_output=words.debug)
    comparisons = []
    for batch in words.batch:
        subjects = [
            Subject(model, thread_count(), batch=batch, dtype=words.dtype, image_size=(words.size, words.size))
            for model in words.models
        ]
        comparison = compare(subjects, peers, effort, lambda text: print(text, file=sys.stderr, flush=True))
        comparisons.append(comparison)
        print_markdown(comparison)
        if words.chart is not None:
            several = f"-batch{batch}" if len(words.batch) > 1 else ""
            draw_chart(comparison, words.chart.with_stem(words.chart.stem + several))
    if words.json is not None:
        write_json(words.json, [comparison.to_json() for comparison in comparisons])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
