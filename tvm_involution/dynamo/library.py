# SPDX-License-Identifier: Apache-2.0
"""The library of a graph for the sizes of its inputs: from the folder of those made before, else compiled."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..library_cache import prune
from ..runtime import CompiledNetwork, load
from .cache import library_path
from .graph import FrozenGraph
from .settings import Settings

_TARGETS = {"cpu": "llvm", "cuda": "cuda"}
_log = logging.getLogger("tvm_involution")


def library_for(frozen: FrozenGraph, inputs: Sequence[Any], settings: Settings) -> Callable[..., tuple[Any, ...]]:
    """Return what runs the graph for inputs like these.

    Raises:
        UserError: the graph cannot be compiled, with the user's line where an operator is why.
    """
    numbers = frozen.numbers(inputs)
    positions = frozen.tensors(inputs)
    tensors = [inputs[index].detach() for index in positions]
    if not tensors:
        raise UserError("it is given no tensor")
    devices = sorted({str(x.device) for x in (*tensors, *frozen.weights(inputs)) if x.dim() or x.device.type != "cpu"})
    if len(devices) > 1:
        raise UserError(f"its inputs and weights are on {' and '.join(devices)}; move them to one device")
    device = torch.device(devices[0] if devices else "cpu")
    target = settings.target or _TARGETS.get(device.type)
    if target is None:
        raise UserError(f"its inputs are on {device}; expected a CPU or an NVIDIA GPU")

    path = library_path(frozen, inputs, target, settings)
    network = None
    if path is not None and path.exists():
        with contextlib.suppress(UserError):  # a damaged one is made again
            network = load(path, device)
    if network is None:
        network = _compile(frozen.as_module(inputs), tensors, target, settings, path, device)
    return _runner(network, positions, frozen, numbers)


def _compile(
    module: torch.nn.Module,
    tensors: Sequence[torch.Tensor],
    target: str,
    settings: Settings,
    path: Path | None,
    device: torch.device,
) -> CompiledNetwork:
    from ..compiler import compile
    from ..frontend.importer import export_module
    from ..frontend.training_mode import for_inference

    start = time.monotonic()
    program = export_module(module, tensors)
    if for_inference(program) is not program:
        raise UserError("it is in training mode; call eval() for inference")
    library = compile(program, target, dtype=settings.dtype, tuning_logs=settings.tuning_logs)
    with tempfile.TemporaryDirectory(prefix="tvm-involution-") as folder:
        file = path if path is not None else Path(folder, "graph.so")
        library.save(file)
        _log.info("compiled a graph in %.1f s: %s", time.monotonic() - start, file)
        network = load(file, device)
    if path is not None:
        prune(path.parent)
    return network


def _runner(
    network: CompiledNetwork, positions: Sequence[int], frozen: FrozenGraph, outputs: Sequence[Any]
) -> Callable[..., tuple[Any, ...]]:
    """Return a call of `network` in the place of the graph.

    Args:
        positions: of its inputs among those of the graph.
        outputs: of the graph; those that are no tensors are returned as they are.
    """
    wanted = [getattr(torch, spec.dtype) for spec in network.metadata.inputs]
    dtypes = frozen.dtypes

    def run(*inputs: Any) -> tuple[Any, ...]:
        computed = network(*(inputs[index].detach().to(dtype) for index, dtype in zip(positions, wanted, strict=True)))
        found = iter(computed if isinstance(computed, tuple) else (computed,))
        return tuple(
            number if dtype is None else next(found).to(dtype) for number, dtype in zip(outputs, dtypes, strict=True)
        )

    return run
