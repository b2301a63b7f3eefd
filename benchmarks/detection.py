# SPDX-License-Identifier: Apache-2.0
"""The detection and segmentation networks on this CPU, beside torch: the table of docs/models.md.

    python benchmarks/detection.py                                      # all of them at their published sizes
    python benchmarks/detection.py --models upernet_rednet50 --image-size 256x512 --calls 5 --json out/detection.json

Each network is compiled, then runs on a photograph in one process of its own and, as its PyTorch module with the
official form of involution, in another. Weights are random; those of the box heads' classifiers are scaled up, so that
objects are found. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from markdown_rows import print_header, print_row

from tvm_involution import zoo
from tvm_involution.bench.agreement import disagreement
from tvm_involution.bench.machine import describe_machine
from tvm_involution.bench.subject import Subject, read_arrays
from tvm_involution.bench.worker import peak_memory
from tvm_involution.cli.words import ImageSize
from tvm_involution.files import write_json
from tvm_involution.runtime.placement import place_picture
from tvm_involution.runtime.preprocessing import read_picture
from tvm_involution.runtime.threads import thread_count

TASKS = ("detection", "instance_segmentation", "semantic_segmentation")
CHECKPOINT = "checkpoint.pth"
CLASSIFIER = "roi_head.bbox_head.fc_cls.weight"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [spec.name for spec in zoo.list_models() if spec.task in TASKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--image-size", type=lambda text: ImageSize().convert(text, None, None))
    parser.add_argument("--picture", type=Path, help="[default: scikit-image's astronaut]")
    parser.add_argument("--calls", type=int, default=3, help="inferences that are timed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("RUNTIME", "SUBJECT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def write_checkpoint(model: str, folder: Path) -> None:
    """Store weights under which the network finds something: an untrained classifier is too even for any threshold."""
    import torch

    from tvm_involution.nn import build_model

    state = build_model(model).state_dict()
    if CLASSIFIER in state:
        state[CLASSIFIER] *= 200
    torch.save(state, folder / CHECKPOINT)


def load_ours(subject: Subject, inputs: list[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
    """Return a call of the compiled library."""
    from tvm_involution.runtime import load

    network = load(subject.library)
    return lambda: tuple(network.run(*inputs).values())


def load_torch(subject: Subject, inputs: list[np.ndarray]) -> Callable[[], tuple[np.ndarray, ...]]:
    """Return a call of the PyTorch module."""
    from tvm_involution.bench.network import prepare_torch

    module, tensors = prepare_torch(subject, inputs)

    def call() -> tuple[np.ndarray, ...]:
        outputs: Any = module(*tensors)
        return tuple(part.numpy() for part in (outputs if isinstance(outputs, tuple) else (outputs,)))

    return call


RUNTIMES = {"ours": load_ours, "torch": load_torch}


def work(runtime: str, subject: Subject, calls: int) -> None:
    """Time a network in this process; print the figures as JSON."""
    call = RUNTIMES[runtime](subject, subject.read_inputs())
    outputs = call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak_memory()}))
    np.savez(subject.output(runtime), *outputs)


def measure(model: str, image_size: tuple[int, int], words: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Compile a network and run it in both ways; return a row of the table."""
    import tvm_involution as ti

    spec = zoo.get_model(model)
    picture = read_picture(words.picture or astronaut(folder))
    write_checkpoint(model, folder)
    subject = Subject(model, thread_count(), folder, 1, image_size=image_size, checkpoint=folder / CHECKPOINT)
    start = time.perf_counter()
    library = ti.compile(model, checkpoint=subject.checkpoint, image_size=image_size)
    library.save(subject.library)
    row: dict[str, Any] = {"model": model, "image_size": image_size, "compile_s": time.perf_counter() - start}
    assert library.metadata.preprocessing is not None
    subject.write_inputs([place_picture(picture, library.metadata.preprocessing, image_size)[0]])
    for runtime in RUNTIMES:
        command = [sys.executable, __file__, "--calls", str(words.calls)]
        command += ["--worker", runtime, json.dumps(subject.to_json())]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        row[runtime] = json.loads(answer.splitlines()[-1])
    ours, reference = (read_arrays(subject.output(runtime)) for runtime in RUNTIMES)
    row["disagreement"] = disagreement(ours, reference, spec.task)
    if spec.task != "semantic_segmentation":
        row["objects"] = int((reference[1] > 0).sum())
    return row


def astronaut(folder: Path) -> Path:
    """Return scikit-image's photograph as a file."""
    import skimage.data
    from PIL import Image

    Image.fromarray(skimage.data.astronaut()).save(folder / "astronaut.png")
    return folder / "astronaut.png"


def print_network(row: dict[str, Any]) -> None:
    """Print a line of the Markdown table."""
    (ours_s, ours_gb), (torch_s, torch_gb) = (
        (statistics.median(row[name]["seconds"]), row[name]["peak_memory_bytes"] / 1e9) for name in RUNTIMES
    )
    size = "x".join(map(str, row["image_size"]))
    found = f"{row['objects']} objects, " if "objects" in row else ""
    times = [f"{ours_s:.2f}", f"{torch_s:.2f}", f"{torch_s / ours_s:.1f}x"]
    memory = [f"{ours_gb:.2f}", f"{torch_gb:.2f}"]
    print_row([row["model"], size, *times, *memory, f"{found}{row['disagreement']:.0e}", f"{row['compile_s']:.0f}"])


def main() -> None:
    """Measure the networks one after another."""
    words = arguments()
    if words.worker is not None:
        work(words.worker[0], Subject.from_json(json.loads(words.worker[1])), words.calls)
        return
    machine = describe_machine(thread_count())
    print(" ".join(f"{key}={value}" for key, value in machine.items()))
    print_header(["network", "input", "ours s", "torch s", "", "ours GB", "torch GB", "differ", "compiled in s"])
    rows = []
    for model in words.models:
        size = words.image_size or tuple(zoo.get_model(model).published["flops_size"])
        with tempfile.TemporaryDirectory(prefix="tvm-involution-detection-") as folder:
            rows.append(measure(model, size, words, Path(folder)))
        print_network(rows[-1])
    if words.json is not None:
        write_json(words.json, {"machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
