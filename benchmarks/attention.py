# SPDX-License-Identifier: Apache-2.0
"""Local self-attention beside its unfold form in eager PyTorch: layers, and the zoo's network of it.

    python benchmarks/attention.py [--threads 1] [--runs 10]

Prints a line a layer and one of the network: milliseconds of both (the fastest of the runs, taken in turns), how many
times as fast, and how far the outputs are apart. Ours is untuned.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

import torch
from beside_eager import compiled, fastest
from torch import Tensor, nn

import tvm_involution as ti
from tvm_involution.nn import LocalAttention2d, local_attention2d

# channels, heads, side of the window, side of the picture, border, dtype
LAYERS = (
    (64, 4, 7, 56, "masked", "float32"),
    (64, 4, 7, 56, "zeros", "float32"),
    (64, 4, 7, 56, "masked", "bfloat16"),
    (64, 8, 3, 56, "masked", "float32"),
    (128, 8, 7, 28, "masked", "float32"),
    (256, 8, 7, 14, "masked", "float32"),
)


class Attention(nn.Module):
    """The operator alone, of queries, keys and values."""

    def __init__(self, heads: int, side: int, border: str) -> None:
        super().__init__()
        self.arguments = {"kernel_size": side, "num_heads": heads, "border": border}

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, C, H, W) each -> (N, C, H, W)."""
        return local_attention2d(query, key, value, **self.arguments)


def unfolded(query: Tensor, key: Tensor, value: Tensor, heads: int, side: int, border: str, embedding=None) -> Tensor:
    """Unfold keys and values, multiply, softmax, multiply: as it is written where there is no operator."""
    n, channels, height, width = query.shape

    def windows(x: Tensor) -> Tensor:
        return nn.functional.unfold(x, side, padding=side // 2).view(n, heads, -1, side**2, height * width)

    keys = windows(key)
    if embedding is not None:
        keys = keys + embedding.view(1, heads, -1, side**2, 1)
    scores = (query.view(n, heads, -1, 1, height * width) * keys).sum(2) * (channels // heads) ** -0.5
    if border == "masked":
        inside = nn.functional.unfold(torch.ones_like(query[:1, :1]), side, padding=side // 2).bool()
        scores = scores.masked_fill(~inside, float("-inf"))
    return (scores.softmax(2).unsqueeze(2) * windows(value)).sum(3).view(value.shape)


class Unfolded(nn.Module):
    """A `LocalAttention2d` with embedding in the unfold form."""

    def __init__(self, layer: LocalAttention2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        layer, side = self.layer, self.layer.kernel_size[0]
        halves = [half.expand(-1, -1, side, side) for half in (layer.row, layer.column)]
        inputs = (layer.query(x), layer.key(x), layer.value(x))
        return unfolded(*inputs, layer.num_heads, side, layer.border, torch.cat(halves, 1))


def compare(name: str, module: nn.Module, eager: Callable[..., Tensor], inputs: tuple[Tensor, ...], runs: int) -> str:
    """Return a line about `module`, compiled, and what `eager` takes for the same."""
    _, network = compiled(module, *inputs)
    with torch.inference_mode():
        expected, actual = eager(*inputs).double(), network(*inputs).double()
        error = float((actual - expected).norm() / expected.norm())
        ours, theirs = fastest((lambda: network(*inputs), lambda: eager(*inputs)), runs)
    return f"{name}: ours {ours:.2f} ms, eager {theirs:.1f} ms, {theirs / ours:.0f} times; error {error:.1e}"


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(options.threads)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for channels, heads, side, size, border, dtype in LAYERS:
        inputs = tuple(torch.randn(1, channels, size, size, dtype=getattr(torch, dtype)) for _ in range(3))
        name = f"{channels} channels, {heads} heads, {side}x{side} on {size}x{size}, {border}, {dtype}"

        def eager(*qkv: Tensor, heads: int = heads, side: int = side, border: str = border) -> Tensor:
            return unfolded(*qkv, heads, side, border)

        print(compare(name, Attention(heads, side, border), eager, inputs, options.runs), flush=True)
    model, plain = ti.nn.build_model("attention_resnet50"), ti.nn.build_model("attention_resnet50")
    for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
        for block in stage:
            if isinstance(block.conv2, LocalAttention2d):
                block.conv2 = Unfolded(block.conv2)
            else:
                block.conv2[0] = Unfolded(block.conv2[0])
    line = compare(
        "attention_resnet50 on 224x224", model, plain, (torch.randn(1, 3, 224, 224),), max(2, options.runs // 3)
    )
    print(line, flush=True)


if __name__ == "__main__":
    main()
