# SPDX-License-Identifier: Apache-2.0
"""A network of 3-D involutions on a volume, beside its unfold form in eager PyTorch; and a 1-D one on a signal.

    python benchmarks/volumes.py [--threads 1] [--runs 5]

Prints a line a network: milliseconds of both (the fastest of the runs, taken in turns), how many times as fast, and how
far the outputs are apart. Ours is untuned.
"""

from __future__ import annotations

import argparse
import os

import torch
from beside_eager import compiled, fastest
from torch import Tensor, nn

import tvm_involution as ti
from tvm_involution.nn.build import init_weights
from tvm_involution.nn.involution import Involution

_CONVOLUTIONS = {1: nn.Conv1d, 3: nn.Conv3d}
_NORMS = {1: nn.BatchNorm1d, 3: nn.BatchNorm3d}
_LAYERS = {1: ti.nn.Involution1d, 3: ti.nn.Involution3d}
_POOLS = {1: nn.AdaptiveAvgPool1d, 3: nn.AdaptiveAvgPool3d}


class Unfolded(nn.Module):
    """An involution layer of stride 1 in the form of the official module: unfold along each axis, multiply, sum."""

    def __init__(self, layer: Involution) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> the same."""
        layer = self.layer
        kernel = layer.generate_kernel(x)
        windows = nn.functional.pad(x, [pad for pad in reversed(layer.padding) for _ in range(2)])
        for axis, taps in enumerate(layer.kernel_size, 2):
            windows = windows.unfold(axis, taps, 1)
        windows = windows.unflatten(1, (layer.groups, -1))
        # taps of the kernel behind the pixels, as those of the windows are
        axes = layer.axes
        kernel = kernel.permute(0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes)).unsqueeze(2)
        return (windows * kernel).sum(tuple(range(-axes, 0))).flatten(1, 2)


class Bottleneck(nn.Module):
    """1x1 convolution, involution, 1x1 convolution around an identity."""

    def __init__(self, axes: int, channels: int, kernel_size: int) -> None:
        super().__init__()
        convolution, norm = _CONVOLUTIONS[axes], _NORMS[axes]
        self.branch = nn.Sequential(
            convolution(channels, channels // 2, 1, bias=False),
            norm(channels // 2),
            nn.ReLU(),
            _LAYERS[axes](channels // 2, kernel_size),
            norm(channels // 2),
            nn.ReLU(),
            convolution(channels // 2, channels, 1, bias=False),
            norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *size) -> the same."""
        return torch.relu(x + self.branch(x))


def classifier(axes: int, channels: int, kernel_size: int) -> nn.Module:
    """Stem convolution of stride 2, three bottlenecks, a linear layer: (N, 1, *size) -> (N, 10)."""
    model = nn.Sequential(
        _CONVOLUTIONS[axes](1, channels, 3, 2, 1, bias=False),
        _NORMS[axes](channels),
        nn.ReLU(),
        *(Bottleneck(axes, channels, kernel_size) for _ in range(3)),
        _POOLS[axes](1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )
    init_weights(model)
    return model.eval()


def compare(axes: int, size: tuple[int, ...], channels: int, kernel_size: int, runs: int) -> str:
    """Return a line about the network of so many axes on one input of `size`."""
    model, x = classifier(axes, channels, kernel_size), torch.randn(1, 1, *size)
    _, network = compiled(model, x)
    for block in model:
        if isinstance(block, Bottleneck):
            block.branch[3] = Unfolded(block.branch[3])
    with torch.inference_mode():
        expected, actual = model(x), network(x)
        error = float((actual - expected).norm() / expected.norm())
        ours, eager = fastest((lambda: network(x), lambda: model(x)), runs)
    shape = "x".join(map(str, size))
    return f"{axes}-D {shape}: ours {ours:.1f} ms, eager {eager:.1f} ms, {eager / ours:.1f} times; error {error:.1e}"


def main() -> None:
    """Print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for axes, size, channels, kernel_size in ((3, (32, 64, 64), 64, 3), (1, (16_000,), 64, 7)):
        print(compare(axes, size, channels, kernel_size, options.runs), flush=True)


if __name__ == "__main__":
    main()
