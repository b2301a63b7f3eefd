# SPDX-License-Identifier: Apache-2.0
"""Predict a network's time on a GPU that is not here: docs/gpu.md, "What it should take".

    python benchmarks/gpu_prediction.py [NETWORK|LIB.so ...] [--card H100 A100 L4] [--batch 1 32 128] [--kernels N]

Needs nvcc, cuobjdump and nvdisasm. Per network, card and batch a row; with --kernels the N kernels that are furthest
from their floor below it. A library has its card, types and batches; it is compiled again from what it was, by default
schedules. `tvm_involution/bench/gpu_prediction.py` says what is counted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_rows import print_header, print_row

from tvm_involution.bench.gpu_card import Card, card_of
from tvm_involution.bench.gpu_prediction import BOUNDS, Launch, predict
from tvm_involution.errors import UserError
from tvm_involution.frontend.compiled_from import origin_of
from tvm_involution.frontend.importer import import_exported_program
from tvm_involution.frontend.network import Network, resolve_network
from tvm_involution.runtime.library_file import read_metadata
from tvm_involution.runtime.metadata import RANDOM_WEIGHTS

COLUMNS = ["network", "card", "type", "batch", "kernels", "memory, GB", "floor, ms", "predicted, ms", "products"]
COLUMNS += ["involutions", "rest", *(f"bound by {bound}" for bound in BOUNDS)]


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["rednet50"])
    parser.add_argument("--card", nargs="+", default=["H100"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="rows of single kernels")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    arguments = parser.parse_args()
    found = {}
    try:
        print_header(COLUMNS)
        for job in jobs(arguments):
            imported = import_exported_program(job.network.export(job.batch))
            for card in job.cards:
                launches = predict(imported, card, job.dtype, arguments.cuobjdump)
                heading = [job.name, card.name, job.dtype, job.batch]
                print_row([*heading, *summary(launches)])
                found[" ".join(map(str, heading))] = launches
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for heading, launches in found.items() if arguments.kernels else ():
        print(f"\n{heading}:\n")
        print_kernels(launches, arguments.kernels)
    return 0


@dataclass(frozen=True)
class Job:
    """A network at a batch size."""

    name: str
    network: Network
    batch: int
    dtype: str
    cards: tuple[Card, ...]


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    """Yield what is to be predicted.

    Raises:
        UserError: a library for CPUs, of a module in memory or for a GPU that there are no figures of; unknown names.
    """
    for name in arguments.networks:
        if name.endswith(".so"):
            metadata = read_metadata(name)
            if metadata.device_type != "cuda":
                raise UserError(f"{name} was compiled for {metadata.device_type}; only GPUs are predicted")
            # its weights may be gone, and do not matter
            origin = origin_of(replace(metadata, weights_origin=RANDOM_WEIGHTS))
            network = resolve_network(origin.model, image_size=origin.image_size, num_classes=origin.num_classes)
            cards, dtype, batches = (card_of(str(metadata.target["arch"])),), metadata.dtype, metadata.batch_sizes
        else:
            network = resolve_network(name)
            cards, dtype, batches = tuple(map(card_of, arguments.card)), arguments.dtype, arguments.batch
        for batch in batches:
            yield Job(Path(name).stem, network, batch, dtype, cards)


def summary(launches: list[Launch]) -> list[object]:
    """Return the cells of a network from the number of kernels on."""
    kinds, bounds = Counter[str](), Counter[str]()
    for launch in launches:
        kinds[kind(launch)] += launch.total
        bounds[launch.bound] += launch.total
    total = sum(launch.total for launch in launches)
    return [
        len(launches),
        f"{sum(launch.moved for launch in launches) / 1e9:.2f}",
        f"{sum(launch.floor for launch in launches) * 1e3:.2f}",
        f"{total * 1e3:.2f}",
        *(f"{kinds[name] * 1e3:.2f}" for name in ("products", "involutions", "rest")),
        *(f"{bounds[name] * 1e3:.2f}" for name in BOUNDS),
    ]


def kind(launch: Launch) -> str:
    """Return what a kernel is counted among."""
    if "Involution" in launch.rule or launch.rule == "LocalAttention":
        return "involutions"
    return "products" if "Gemm" in launch.rule else "rest"


def print_kernels(launches: list[Launch], count: int) -> None:
    """Print the kernels that lose most to their floors, all calls of each together, in microseconds."""
    calls = defaultdict(list)
    for launch in launches:
        calls[launch.kernel].append(launch)
    print_header(["kernel", "rule", "result", "calls", "predicted", "floor", "bound by", *BOUNDS])
    by_loss = sorted(calls.values(), key=lambda group: sum(one.floor - one.total for one in group))
    for group in by_loss[:count]:
        first = group[0]
        cells = [first.kernel.removesuffix("_kernel"), first.rule, first.shape, len(group)]
        cells += [f"{sum(one.total for one in group) * 1e6:.0f}", f"{sum(one.floor for one in group) * 1e6:.0f}"]
        cells += [first.bound, *(f"{sum(one.seconds[name] for one in group) * 1e6:.0f}" for name in BOUNDS)]
        print_row(cells)


if __name__ == "__main__":
    sys.exit(main())
