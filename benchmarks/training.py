# SPDX-License-Identifier: Apache-2.0
"""Involutions in training on this CPU, beside the unfold form that everybody writes, and beside ResNet-50.

    python benchmarks/training.py layers [--threads 2] [--runs 5] [--batch 8] [--clock cpu]
    python benchmarks/training.py steps  [--threads 2] [--runs 5] [--batch 8] [--clock cpu] [--depth 50]
    python benchmarks/training.py losses [--threads 2] [--runs 20] [--batch 8] [--depth 26]

`layers` prints a row a layer of RedNet-50: milliseconds forward and backward by compiled kernels, tap by tap and by
unfold, the fastest of runs taken in turns. `steps` prints a row a network: a whole step (forward, backward, SGD) in
float32, the fastest of runs taken in turns, and the most memory of a process that trains it alone.
`--clock cpu` counts the time that processors worked, which other processes disturb less; with one thread it is
that of a clock on a machine without others. `losses` trains a RedNet after `replace_involutions` on random pictures of
64x64, and prints a row a step: how far its loss and gradients are from float64, and those of the unfold form with the
same weights.
"""

from __future__ import annotations

import argparse
import copy
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from beside_eager import in_turns
from markdown_rows import print_header, print_row
from rednet_layers import LAYERS
from torch import Tensor, nn

from tvm_involution.nn import involution2d, replace_involutions, use_kernels
from tvm_involution.nn.build import build_model
from tvm_involution.nn.involution import Involution2d

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
        layer = self.layer
        hidden = x if layer.avgpool is None else layer.avgpool(x)
        kernel = layer.conv2(layer.conv1(hidden)).unflatten(1, (layer.groups, *layer.kernel_size))
        return unfolded(x, kernel, layer.stride[0], layer.padding[0])


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


def step_of(name: str, depth: int, batch: int) -> Callable[[], None]:
    """Return a step of training of one of `NETWORKS`."""
    model = network(name, depth)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images, labels = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))

    def step() -> None:
        with use_kernels("wait" if name == "kernels" else "off"):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return step


def print_memory(name: str, depth: int, batch: int) -> None:
    """Print the most memory that this process had in two steps, in megabytes."""
    step = step_of(name, depth, batch)
    for _ in range(2):
        step()
    # not what `getrusage` says, which counts the process that this one was started by
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)


def steps(options: argparse.Namespace) -> None:
    """Print the table of the networks."""
    calls = [step_of(name, options.depth, options.batch) for name in NETWORKS]
    times = in_turns(calls, options.runs + 1, CLOCKS[options.clock])[:, 1:].min(1)
    same = [f"--{name}={getattr(options, name)}" for name in ("threads", "batch", "depth")]
    print_header(["network", "ms a step", "peak memory, MB"])
    for name, milliseconds in zip(NETWORKS, times, strict=True):
        command = [sys.executable, __file__, "steps", *same, f"--memory-of={name}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        title = _TITLES[name].replace("Net", f"Net-{options.depth}")
        print_row([title, f"{milliseconds:.0f}", done.stdout.splitlines()[-1]])


def losses(options: argparse.Namespace) -> None:
    """Print the table of a run, in which both forms have the same weights at each step."""
    plain = network("unfold", options.depth)
    replaced, exact = copy.deepcopy(plain), copy.deepcopy(plain).double()
    replace_involutions(replaced, torch.randn(2, 3, 64, 64))
    pictures, labels = torch.randn(4 * options.batch, 3, 64, 64), torch.randint(8, (4 * options.batch,))
    optimizer = torch.optim.SGD(replaced.parameters(), 0.002, momentum=0.9)
    forms = ("unfold", "replaced")
    print_header(
        ["step", "loss", *(f"{form}, loss off by" for form in forms), *(f"{f}, gradients off by" for f in forms)]
    )
    for step in range(options.runs):
        chosen, found = torch.arange(options.batch) + step % 4 * options.batch, []
        for model in (plain, exact):
            model.load_state_dict(replaced.state_dict())
        for model in (plain, replaced, exact):
            dtype = next(model.parameters()).dtype
            loss = nn.functional.cross_entropy(model(pictures[chosen].to(dtype)), labels[chosen])
            model.zero_grad()
            loss.backward()
            grads = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])
            found.append((loss.item(), grads))
        *others, (right, grads) = found
        apart = [f"{abs(loss - right):.1e}" for loss, _ in others]
        print_row(
            [step, f"{right:.4f}", *apart, *(f"{float((g - grads).norm() / grads.norm()):.1e}" for _, g in others)]
        )
        optimizer.step()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "steps", "losses"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--memory-of", choices=NETWORKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.what == "layers":
        layers(options.batch, options.runs, CLOCKS[options.clock])
    elif options.what == "losses":
        losses(options)
    elif options.memory_of:
        print_memory(options.memory_of, options.depth, options.batch)
    else:
        steps(options)


if __name__ == "__main__":
    main()
