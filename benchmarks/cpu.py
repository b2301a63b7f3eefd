# SPDX-License-Identifier: Apache-2.0
"""RedNet and ResNet on this CPU: ours beside torch, torch.compile, ONNX Runtime and OpenVINO.

    python benchmarks/cpu.py                                  # RedNet-50 and ResNet-50, batch 1, float32
    python benchmarks/cpu.py --models rednet26 resnet50 --batch 8 --json out/cpu.json --chart out/cpu.png

Every contender runs in a process of its own (thread pools of different libraries disturb each other in one process),
with the same number of threads, and all take turns in one run, so that a drifting clock hits all alike. Peers run
involution in the official form with `nn.Unfold`, the only one they can take. Nothing else may run on the machine.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTENDERS = ("ours", "torch", "inductor", "onnxruntime", "openvino")


def unfolded(model: str):
    """Return the zoo network with its involutions in the official naive form (involution_naive.py)."""
    import torch

    from tvm_involution.nn import Involution2d, build_model

    def forward(self: Involution2d, x: torch.Tensor) -> torch.Tensor:
        kernel = self.generate_kernel(x)
        n, groups, k, _, h, w = kernel.shape
        windows = torch.nn.functional.unfold(x, k, self.dilation, self.dilation * (k - 1) // 2, self.stride)
        windows = windows.view(n, groups, self.channels // groups, k * k, h, w)
        return (kernel.view(n, groups, 1, k * k, h, w) * windows).sum(3).view(n, self.channels, h, w)

    module = build_model(model)
    for part in module.modules():
        if isinstance(part, Involution2d):
            part.forward = forward.__get__(part)
    return module


def prepare(contender: str, model: str, x: np.ndarray, threads: int, folder: Path) -> Callable[[], np.ndarray]:
    """Return a call that runs one inference of `contender` and gives the logits."""
    if contender == "ours":
        import tvm_involution as ti

        path = folder / "ours.so"
        ti.compile(model, batch=len(x), image_size=x.shape[2:]).save(path)
        network = ti.load(path)
        return lambda: network(x)

    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    tensor, module = torch.from_numpy(x), unfolded(model)
    if contender == "torch":
        import copy

        # unfold likes NCHW, convolutions like channels last: take what is faster for this network
        last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        turned = tensor.to(memory_format=torch.channels_last)
        return fastest(lambda: module(tensor).numpy(), lambda: last(turned).numpy())
    if contender == "inductor":
        import torch._inductor.config

        torch._inductor.config.freezing = True
        compiled = torch.compile(module)
        return lambda: compiled(tensor).numpy()

    path = folder / "network.onnx"
    torch.onnx.export(module, (tensor,), path, dynamo=True, verbose=False)
    if contender == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda: session.run(None, {name: x})[0]
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    network = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", settings)
    request = network.create_infer_request()
    return lambda: next(iter(request.infer([x]).values()))


def fastest(*calls: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Return the call that takes the least time, of five tries each."""

    def seconds(call: Callable[[], np.ndarray]) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return min(times)

    return min(calls, key=seconds)


def work(contender: str, model: str, batch: int, size: int, threads: int, output: Path) -> None:
    """Be a contender: prepare, write the logits to `output`, then time a round for every number read."""
    x = np.random.default_rng(0).standard_normal((batch, 3, size, size), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        call = prepare(contender, model, x, threads, Path(folder))
    for _ in range(5):
        logits = call()
    np.save(output, logits)
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Contender:
    """A process that runs one network in one way."""

    def __init__(self, name: str, model: str, arguments: argparse.Namespace, threads: int, folder: Path) -> None:
        self.name, self.model = name, model
        self.times: list[float] = []
        self.output = folder / f"{name}-{model}.npy"
        words = [name, model, str(arguments.batch), str(arguments.size), str(threads), str(self.output)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TVM_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not arguments.debug else None,
            text=True,
            env=environment,
        )
        self.ready = self._line() == "ready"

    def _line(self) -> str:
        """Read a line that is ours, past what libraries print."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(("ready", "[")):
                return line.strip()
        return ""

    def round(self, calls: int) -> None:
        """Time `calls` inferences."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{calls}\n")
        self._process.stdin.flush()
        self.times += json.loads(self._line())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    @property
    def median(self) -> float:
        """The median time of an inference in milliseconds."""
        return 1e3 * statistics.median(self.times)


def machine(threads: int) -> dict[str, object]:
    """Return what the figures were measured on and with."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu, flags = (
        next((x.split(":")[1].strip() for x in lines if x.startswith(k)), "") for k in ("model name", "flags")
    )
    versions = {p: importlib.metadata.version(p) for p in ("apache-tvm", "torch", "onnxruntime", "openvino")}
    return {
        "cpu": cpu,
        "isa": "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "other",
        "threads": threads,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
        **versions,
    }


def chart(rows: list[dict], title: str, path: Path) -> None:
    """Draw the medians as bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.2), layout="constrained")
    labels = [f"{row['model']}, {row['contender']}" for row in rows]
    colours = ["#d1495b" if row["contender"] == "ours" else "#9aa5b1" for row in rows]
    drawn = axis.barh(labels[::-1], [row["median_ms"] for row in rows][::-1], color=colours[::-1])
    axis.bar_label(drawn, fmt="%.1f", padding=3)
    axis.set_xlabel("milliseconds a batch (median)")
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the comparison."""
    if sys.argv[1:2] == ["--work"]:
        contender, model, batch, size, threads, output = sys.argv[2:]
        work(contender, model, int(batch), int(size), int(threads), Path(output))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["rednet50", "resnet50"])
    parser.add_argument("--against", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--calls", type=int, default=10, help="inferences a round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    parser.add_argument("--debug", action="store_true", help="show what the contenders print")
    arguments = parser.parse_args()

    from tvm_involution.runtime.threads import thread_count

    threads = thread_count()
    with tempfile.TemporaryDirectory() as folder:
        contenders = []
        for model in arguments.models:
            for name in arguments.against:
                print(f"preparing {model} in {name} …", file=sys.stderr, flush=True)
                contender = Contender(name, model, arguments, threads, Path(folder))
                if contender.ready:
                    contenders.append(contender)
                else:
                    print(f"{name} cannot run {model} (--debug shows why)", file=sys.stderr)
        for number in range(arguments.rounds):
            print(f"round {number + 1}/{arguments.rounds}", file=sys.stderr, flush=True)
            for contender in contenders:
                contender.round(arguments.calls)
        for contender in contenders:
            contender.close()
        rows = []
        for contender in contenders:
            first = next(c for c in contenders if c.model == contender.model)
            expected, actual = np.load(first.output), np.load(contender.output)
            rows.append(
                {
                    "model": contender.model,
                    "contender": contender.name,
                    "median_ms": round(contender.median, 3),
                    "min_ms": round(1e3 * min(contender.times), 3),
                    "difference": float(np.linalg.norm(actual - expected) / np.linalg.norm(expected)),
                }
            )
    facts = machine(threads)
    print(" ".join(f"{key}={value}" for key, value in facts.items()))
    print(f"{arguments.size}x{arguments.size}, batch {arguments.batch}, float32\n")
    best = min(
        (r["median_ms"] for r in rows if r["model"].startswith("resnet") and r["contender"] != "ours"), default=None
    )
    print("| network | in | median ms | min ms | against the best peer's ResNet | differs by |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        ratio = f"{row['median_ms'] / best:.2f}x" if best else "-"
        figures = f"{row['median_ms']:.1f} | {row['min_ms']:.1f} | {ratio} | {row['difference']:.0e}"
        print(f"| {row['model']} | {row['contender']} | {figures} |")
    if arguments.json:
        data = {"machine": facts, "batch": arguments.batch, "size": arguments.size, "rows": rows}
        arguments.json.write_text(json.dumps(data, indent=1))
    if arguments.chart:
        title = (
            f"{facts['isa']}, {threads} threads, {arguments.size}x{arguments.size}, batch {arguments.batch}, float32"
        )
        chart(rows, title, arguments.chart)


if __name__ == "__main__":
    main()
