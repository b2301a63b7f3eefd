# SPDX-License-Identifier: Apache-2.0
"""What is inside an official classification checkpoint, written down from d-li14/involution, not from our modules."""

from __future__ import annotations

import math

import torch

BLOCKS = {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def shapes(depth: int) -> dict[str, tuple[int, ...]]:
    """Return every name of `RedNet(depth)` with a 1000-class head, with its shape, `num_batches_tracked` aside."""
    found: dict[str, tuple[int, ...]] = {}

    def norm(name: str, channels: int) -> None:
        found.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    def involution(name: str, channels: int, kernel_size: int) -> None:
        span = kernel_size**2 * (channels // 16)
        found[f"{name}.conv1.conv.weight"] = (channels // 4, channels, 1, 1)
        norm(f"{name}.conv1.bn", channels // 4)
        found[f"{name}.conv2.conv.weight"] = (span, channels // 4, 1, 1)
        found[f"{name}.conv2.conv.bias"] = (span,)

    found["backbone.stem.0.conv.weight"] = (32, 3, 3, 3)
    norm("backbone.stem.0.bn", 32)
    involution("backbone.stem.1", 32, 3)
    norm("backbone.stem.2", 32)
    found["backbone.stem.4.conv.weight"] = (64, 32, 3, 3)
    norm("backbone.stem.4.bn", 64)
    channels = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width, out = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"backbone.layer{stage + 1}.{block}"
            found[f"{name}.conv1.weight"] = (width, channels, 1, 1)
            norm(f"{name}.bn1", width)
            involution(f"{name}.conv2", width, 7)
            norm(f"{name}.bn2", width)
            found[f"{name}.conv3.weight"] = (out, width, 1, 1)
            norm(f"{name}.bn3", out)
            if block == 0:
                found[f"{name}.downsample.0.weight"] = (out, channels, 1, 1)
                norm(f"{name}.downsample.1", out)
            channels = out
    found["head.fc.weight"], found["head.fc.bias"] = (1000, 2048), (1000,)
    return found


def checkpoint(depth: int) -> dict[str, object]:
    """Return an official file's content: random weights, and `meta` as mmcv's runner writes it."""
    state = {name: torch.rand(shape) / math.prod(shape) for name, shape in shapes(depth).items()}
    tracked = [name.removesuffix("running_mean") for name in state if name.endswith("running_mean")]
    state |= {f"{name}num_batches_tracked": torch.tensor(5) for name in tracked}
    meta = {"epoch": 130, "iter": 81250, "time": "Mon Mar  8 09:10:11 2021", "config": "model = dict()\n", "seed": None}
    return {"meta": meta, "state_dict": state}
