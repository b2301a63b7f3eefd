# SPDX-License-Identifier: Apache-2.0
"""Pictures a second of `run` over a folder, beside those of the library alone, in turns in one process.

    python benchmarks/pictures.py
    python benchmarks/pictures.py --model rednet26 --batch 1 --count 200

The library alone gets arrays that are prepared already. Reading a picture is work on the same cores: `reading` is how
many a second all cores prepare while no library runs, and `both` what they could do of the two together, 1 / (1 / alone
+ 1 / reading). What `run` loses against that is lost by waiting.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from markdown_rows import print_header, print_row

import tvm_involution as ti
from tvm_involution.bench.machine import describe_machine
from tvm_involution.cli.many_pictures import run_many
from tvm_involution.runtime.prepare import prepare_picture
from tvm_involution.runtime.preprocessing import read_picture
from tvm_involution.runtime.threads import thread_count

sys.path.append(str(Path(__file__).parents[1] / "examples"))
from small_datasets import PHOTOGRAPHS, load_photograph


def write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write parts of real photographs as JPEG of `size` (width, height), as large as ImageNet's are."""
    rng = np.random.default_rng(0)
    photographs = [load_photograph(name) for name in PHOTOGRAPHS]
    files = []
    for number in range(count):
        picture = photographs[number % len(photographs)]
        left, top = (int(rng.integers(0, side // 4)) for side in picture.size)
        right, bottom = (int(rng.integers(side * 3 // 4, side)) for side in picture.size)
        files.append(str(folder / f"{number}.jpg"))
        picture.resize(size, box=(left, top, right, bottom)).save(files[-1], quality=90)
    return files


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="rednet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--count", type=int, default=160, help="pictures a turn")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="width and height of the pictures")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        files = write_pictures(folder / "photos", arguments.count, tuple(arguments.size))
        library = folder / "library.so"
        ti.compile(arguments.model, batch=arguments.batch, dtype=arguments.dtype).save(library)
        network = ti.load(library)
        metadata = network.metadata
        arrays = [prepare_picture(metadata, read_picture(file))[0] for file in files]
        batches = [np.concatenate(arrays[i : i + arguments.batch]) for i in range(0, len(arrays), arguments.batch)]
        pool = ThreadPoolExecutor(thread_count())

        def alone() -> None:
            for batch in batches:
                network(batch)

        def reading() -> None:
            list(pool.map(lambda file: prepare_picture(metadata, read_picture(file)), files))

        def run() -> None:
            output = folder / "answers.jsonl"
            output.unlink(missing_ok=True)
            with contextlib.redirect_stdout(io.StringIO()):
                run_many(
                    network,
                    metadata,
                    library,
                    [folder / "photos"],
                    output=output,
                    top_k=5,
                    draw=None,
                    score_threshold=0.3,
                    as_json=False,
                )

        ways: dict[str, Callable[[], None]] = {"alone": alone, "reading": reading, "run": run}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(arguments.rounds + 1):
            for way, work in ways.items():
                start = time.perf_counter()
                work()
                if turn:
                    rates[way].append(len(files) / (time.perf_counter() - start))
    print(" ".join(f"{key}={value}" for key, value in describe_machine(thread_count()).items()), "\n")
    medians = {way: statistics.median(values) for way, values in rates.items()}
    both = 1 / (1 / medians["alone"] + 1 / medians["reading"])
    shares = [
        statistics.median(a / b for a, b in zip(rates["run"], rates["alone"], strict=True)),
        medians["run"] / both,
    ]
    print_header(["pictures/s", "alone", "reading", "both", "run", "run of alone", "run of both"])
    print_row(
        [
            f"{arguments.model}, batch {arguments.batch}, {arguments.dtype}",
            *(f"{value:.1f}" for value in (medians["alone"], medians["reading"], both, medians["run"])),
            *(f"{share:.1%}" for share in shares),
        ]
    )


if __name__ == "__main__":
    main()
