# SPDX-License-Identifier: Apache-2.0
"""Involutions in training on this CPU, beside the unfold form that everybody writes, and beside ResNet-50.

    python benchmarks/training.py layers [--threads 2] [--runs 5] [--batch 8] [--clock cpu]
    python benchmarks/training.py steps  [--threads 2] [--runs 5] [--batch 8] [--clock cpu] [--depth 50]

`layers` prints a row a layer of RedNet-50: milliseconds forward and backward by compiled kernels, tap by tap and by
unfold, the fastest of runs taken in turns. `steps` prints a row a network: a whole step (forward, backward, SGD) in
float32, the fastest of runs, and the most memory the process had; each network has a process of its own, and these take
turns. `--clock cpu` counts the time that processors worked, which other processes disturb less; with one thread it is
that of a clock on a machine without others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from beside_eager import in_turns
from markdown_rows import print_header, print_row
from torch import Tensor, nn

from tvm_involution.nn import involution2d, use_kernels
from tvm_involution.nn.build import build_model
from tvm_involution.nn.involution import Involution2d

# channels, size of x, kernel size, stride: the stem's, the stages' first and others
LAYERS = [
    (32, 112, 3, 1),
    (64, 56, 7, 1),
    (128, 56, 7, 2),
    (128, 28, 7, 1),
    (256, 28, 7, 2),
    (256, 14, 7, 1),
    (512, 14, 7, 2),
    (512, 7, 7, 1),
]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
NETWORKS = ("kernels", "taps", "unfold", "resnet")
_TITLES = {
    "kernels": "RedNet, compiled kernels",
    "taps": "RedNet, tap by tap",
    "unfold": "RedNet, unfold",
    "resnet": "ResNet",
}


def unfolded(x: Tensor, kernel: Tensor, stride: int, padding: int) -> Tensor:
    """Return what `involution2d` does, in the form of the official module without CuPy."""
    n, channels = x.shape[:2]
    groups, taps, out = kernel.shape[1], kernel.shape[2:4], kernel.shape[4:]
    windows = nn.functional.unfold(x, taps, 1, padding, stride).view(n, groups, channels // groups, -1, *out)
    return (kernel.flatten(2, 3).unsqueeze(2) * windows).sum(3).view(n, channels, *out)


class Unfolded(nn.Module):
    """An involution layer by unfold."""

    def __init__(self, layer: Involution2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, OH, OW)."""
        return unfolded(x, self.layer.generate_kernel(x), self.layer.stride[0], self.layer.padding[0])


def time_layer(
    channels: int, size: int, kernel_size: int, stride: int, batch: int, runs: int, clock: Callable[[], float]
) -> list[float]:
    """Return milliseconds forward and backward, by kernels, tap by tap and by unfold."""
    out = -(-size // stride)
    x = torch.randn(batch, channels, size, size, requires_grad=True)
    kernel = torch.randn(batch, channels // 16, kernel_size, kernel_size, out, out, requires_grad=True)
    grad = torch.randn(batch, channels, out, out)

    def by(form: Callable[..., Tensor], mode: str) -> tuple[Callable[[], object], Callable[[], object]]:
        made: list[Tensor] = []

        def forward() -> None:
            with use_kernels(mode):
                made[:] = [form(x, kernel, stride, kernel_size // 2)]

        def backward() -> None:
            with use_kernels(mode):
                torch.autograd.grad(made.pop(), (x, kernel), grad)

        return forward, backward

    forms = [by(involution2d, "wait"), by(involution2d, "off"), by(unfolded, "off")]
    times = in_turns([call for form in forms for call in form], runs + 1, clock)[:, 1:]
    return [float(least) for least in times.min(1)]


def layers(batch: int, runs: int, clock: Callable[[], float]) -> None:
    """Print the table of the layers."""
    forms = ("kernels", "tap by tap", "unfold")
    columns = [f"{form}, {way}" for form in forms for way in ("forward", "backward")]
    print_header(["channels, size, kernel, stride", *columns, "backward / forward"])
    for layer in LAYERS:
        times = time_layer(*layer, batch, runs, clock)
        ratio = times[1] / times[0]
        print_row([", ".join(map(str, layer)), *(f"{ms:.2f}" for ms in times), f"{ratio:.1f}"])


def network(name: str, depth: int) -> nn.Module:
    """Return one of `NETWORKS`, in training mode."""
    model = build_model(f"rednet{depth}" if name != "resnet" else f"resnet{depth}")
    if name == "unfold":
        for parent in list(model.modules()):
            for child, layer in list(parent.named_children()):
                if isinstance(layer, Involution2d) and not isinstance(parent, Unfolded):
                    setattr(parent, child, Unfolded(layer))
    return model.train()


def worker(name: str, depth: int, batch: int, runs: int, clock: Callable[[], float]) -> None:
    """Print the milliseconds of the fastest step and the megabytes of this process as JSON."""
    use_kernels("wait" if name == "kernels" else "off")
    torch.manual_seed(0)
    model = network(name, depth)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    times = []
    for _ in range(runs):
        start = clock()
        step()
        times.append(1e3 * (clock() - start))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([min(times), peak]))


def steps(options: argparse.Namespace) -> None:
    """Print the table of the networks, whose processes take turns twice."""
    command = [
        sys.executable,
        __file__,
        "steps",
        *(f"--{n}={getattr(options, n)}" for n in ("threads", "batch", "depth")),
    ]
    command += [f"--runs={options.runs}"]
    found: dict[str, list[list[float]]] = {name: [] for name in NETWORKS}
    for _ in range(2):
        for name in NETWORKS:
            done = subprocess.run([*command, f"--only={name}"], stdout=subprocess.PIPE, check=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    print_header(["network", "ms a step", "peak memory, MB"])
    for name, turns in found.items():
        milliseconds, megabytes = (min(turn[i] for turn in turns) for i in (0, 1))
        print_row([_TITLES[name].replace("Net", f"Net-{options.depth}"), f"{milliseconds:.0f}", f"{megabytes:.0f}"])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "steps"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--only", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.what == "layers":
        layers(options.batch, options.runs, CLOCKS[options.clock])
    elif options.only:
        worker(options.only, options.depth, options.batch, options.runs, CLOCKS[options.clock])
    else:
        steps(options)


if __name__ == "__main__":
    main()
