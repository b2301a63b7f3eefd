# SPDX-License-Identifier: Apache-2.0
"""The folder of libraries made before, which the next process takes: one by what it was made of."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..library_cache import compiler_words, cpu_words, make_private
from .graph import FrozenGraph
from .settings import Settings


def library_path(frozen: FrozenGraph, inputs: Sequence[Any], target: str, settings: Settings) -> Path | None:
    """Return where the library of a graph for inputs like these is, or will be; None where the folder is not ours.

    The name is a sum over the graph's code, its weights, the shapes and dtypes of its inputs, the target with this
    machine's CPU or GPU, the options, and the versions of torch, TVM and this package.
    """
    folder = settings.cache_folder
    if not make_private(folder):
        return None
    path = folder / f"{_sum(frozen, inputs, target, settings)}.so"
    if path.exists():
        os.utime(path)
    return path


def _sum(frozen: FrozenGraph, inputs: Sequence[Any], target: str, settings: Settings) -> str:
    total = hashlib.sha256()
    for word in (*_code(frozen.graph), *_machine(inputs), torch.__version__, *compiler_words()):
        total.update(word.encode() + b"\0")
    total.update(f"{target} {settings.dtype} {settings.tuning_logs}".encode())
    for value in frozen.arguments(inputs):
        total.update(
            f"{tuple(value.shape)} {value.dtype}".encode() if isinstance(value, torch.Tensor) else f"{value!r}".encode()
        )
    for tensor in (*frozen.weights(inputs), *frozen.graph.state_dict().values()):
        total.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def _code(graph: torch.nn.Module) -> Iterator[str]:
    """Yield the code of a graph and of the graphs that it calls."""
    for name, module in graph.named_modules():
        yield f"{name} {module.code if isinstance(module, fx.GraphModule) else module!r}"


def _machine(inputs: Sequence[Any]) -> list[str]:
    device = next(value.device for value in inputs if isinstance(value, torch.Tensor))
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    return cpu_words()
