# SPDX-License-Identifier: Apache-2.0
"""The paper's promise as time: its benchmarks on RedNet-50 here, beside those on ResNet-50 in the best other runtime.

    python benchmarks/paper.py                                            # all of them, float32
    python benchmarks/paper.py --only "Faster R-CNN" --against openvino
    python benchmarks/paper.py --dtype bfloat16 --json out/paper.json --chart out/paper.png

Each row is two networks in turns, ours on both and the peers on ResNet-50's, batch 1. Detectors are cut before what
selects boxes (`dense_parts.py`), on both sides, for other runtimes cannot take that. Operations are the published ones.
Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dense_parts import NETWORKS
from markdown_rows import print_header, print_row

from tvm_involution import zoo
from tvm_involution.bench.compare import compare
from tvm_involution.bench.contenders import OURS, PEERS, select_peers
from tvm_involution.bench.effort import Effort
from tvm_involution.bench.result import Comparison
from tvm_involution.bench.subject import Subject
from tvm_involution.errors import UserError
from tvm_involution.files import atomic_write, write_json
from tvm_involution.runtime.metadata import DTYPES
from tvm_involution.runtime.threads import thread_count


@dataclass(frozen=True)
class Benchmark:
    """A row: a network of involutions, and its twin of convolutions."""

    title: str
    rednet: str
    resnet: str
    image_size: tuple[int, int]

    def operations_share(self) -> float:
        """Return the published operations of the first over those of the second."""
        one, other = (zoo.get_model(name).published["flops_g"] for name in (self.rednet, self.resnet))
        return one / other


BENCHMARKS = (
    Benchmark("ImageNet", "rednet50", "resnet50", (224, 224)),
    Benchmark("Faster R-CNN", "faster_rcnn_rednet50_neck", "faster_rcnn_resnet50", (800, 1280)),
    Benchmark("Faster R-CNN, heads too", "faster_rcnn_rednet50_neck_head", "faster_rcnn_resnet50", (800, 1280)),
    Benchmark("Mask R-CNN", "mask_rcnn_rednet50_neck", "mask_rcnn_resnet50", (800, 1280)),
    Benchmark("Mask R-CNN, heads too", "mask_rcnn_rednet50_neck_head", "mask_rcnn_resnet50", (800, 1280)),
    Benchmark("RetinaNet", "retinanet_rednet50_neck", "retinanet_resnet50", (800, 1280)),
    Benchmark("Semantic FPN", "semantic_fpn_rednet50_neck", "semantic_fpn_resnet50", (512, 1024)),
    Benchmark("UPerNet", "upernet_rednet50", "upernet_resnet50", (512, 1024)),
)
COLUMNS = ("benchmark", "input", "RedNet, ours", "ResNet, ours", "ResNet, best peer", "time", "operations")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [contender.name for contender in (OURS, *PEERS)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[b.title for b in BENCHMARKS], help="[default: all]")
    parser.add_argument("--against", nargs="+", choices=names, help="[default: those installed] ours always runs")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--calls", type=int, default=3, help="inferences a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--debug", action="store_true", help="show what the contenders print")
    return parser.parse_args()


def measure(benchmark: Benchmark, words: argparse.Namespace) -> Comparison:
    """Run the two networks of a row in turns."""
    subjects = []
    for name in (benchmark.rednet, benchmark.resnet):
        cut = name in NETWORKS
        size = None if cut else benchmark.image_size
        model = f"dense_parts:{name}" if cut else name
        subjects.append(Subject(model, thread_count(), batch=1, dtype=words.dtype, image_size=size))
    peers = select_peers(words.against and [name for name in words.against if name != OURS.name])
    effort = Effort(words.rounds, words.calls, show_output=words.debug)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    return compare(subjects, peers, effort, say, ours_alone={subjects[0].model})


def summarize(benchmark: Benchmark, comparison: Comparison) -> dict[str, Any]:
    """Return a row's figures."""
    red, *twins = comparison.results
    ours, *peers = [result for result in twins if result.median_ms is not None]
    best = min(peers, key=lambda result: result.median_ms or 0.0, default=None)
    return {
        "benchmark": benchmark.title,
        "image_size": benchmark.image_size,
        "rednet_ms": red.median_ms,
        "resnet_ms": ours.median_ms,
        "peer": best and best.contender,
        "peer_ms": best and best.median_ms,
        "time_share": best and red.median_ms and best.median_ms and red.median_ms / best.median_ms,
        "operations_share": benchmark.operations_share(),
        "failures": {result.contender: result.failure for result in twins if result.failure},
    }


def print_summary(row: dict[str, Any]) -> None:
    """Print a line of the table."""
    peer = f"{row['peer_ms']:.1f} {row['peer']}" if row["peer"] else "-"
    share = f"{row['time_share']:.2f}x" if row["peer"] else "-"
    ours = [f"{row[key]:.1f}" for key in ("rednet_ms", "resnet_ms")]
    size = "x".join(map(str, row["image_size"]))
    print_row([row["benchmark"], size, *ours, peer, share, f"{row['operations_share']:.2f}x"])


def draw(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Draw each row's share of the operations beside its share of the time."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["time_share"]][::-1]
    figure = Figure(figsize=(8, 0.6 * len(rows) + 1.3), layout="constrained")
    axis = figure.subplots()
    for offset, key, color, label in (
        (0.2, "operations_share", "#9aa5b1", "operations (published)"),
        (-0.2, "time_share", "#d1495b", "time, ours on RedNet-50 over the best peer on ResNet-50"),
    ):
        places = [number + offset for number in range(len(rows))]
        bars = axis.barh(places, [row[key] for row in rows], height=0.38, color=color, label=label)
        axis.bar_label(bars, fmt="%.2f", padding=3)
    axis.set_yticks(range(len(rows)), [row["benchmark"] for row in rows])
    axis.axvline(1.0, color="#333333", linewidth=0.8)
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main() -> None:
    """Measure the rows one after another; each is printed as soon as it is known."""
    words = arguments()
    # the processes that are timed find dense_parts.py, too
    folders = [str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, folders))
    rows, comparisons, machine = [], [], None
    for benchmark in BENCHMARKS:
        if words.only and benchmark.title not in words.only:
            continue
        comparison = measure(benchmark, words)
        if machine is None:
            machine = comparison.machine
            print(" ".join(f"{key}={value}" for key, value in machine.items()))
            print_header([*COLUMNS[:2], *(f"{column}, ms" for column in COLUMNS[2:5]), *COLUMNS[5:]])
        comparisons.append(comparison.to_json())
        rows.append(summarize(benchmark, comparison))
        print_summary(rows[-1])
        for contender, failure in rows[-1]["failures"].items():
            print(f"{contender} failed: {failure}", file=sys.stderr)
        if words.json is not None:
            write_json(words.json, {"machine": machine, "rows": rows, "comparisons": comparisons})
        if words.chart is not None:
            draw(rows, f"{machine['cpu']}, {machine['threads']} threads, batch 1, {words.dtype}", words.chart)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
