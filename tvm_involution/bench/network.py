# SPDX-License-Identifier: Apache-2.0
"""The PyTorch side of a subject: the network as peers run it, its ONNX file, and the reference's outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from ..frontend.network import Network, resolve_network
from ..nn import Involution2d
from .agreement import DETECTION_TASKS
from .subject import Subject


def resolve(subject: Subject) -> Network:
    """Return the subject's network; one that a user's function initializes at random is the same in every process.

    Raises:
        UserError: see `resolve_network`.
    """
    torch.manual_seed(0)
    return resolve_network(
        subject.model,
        checkpoint=subject.checkpoint,
        checkpoint_key=subject.checkpoint_key,
        num_classes=subject.num_classes,
        image_size=subject.image_size,
    )


def input_shapes(subject: Subject) -> list[tuple[int, ...]]:
    """Return the shapes (1, ...) of the network's inputs."""
    program = resolve(subject).export(1)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    return [tuple(int(d) for d in values[name].shape) for name in program.graph_signature.user_inputs]


def prepare_torch(subject: Subject, inputs: Sequence[np.ndarray]) -> tuple[torch.nn.Module, list[torch.Tensor]]:
    """Return the network for torch, in the subject's dtype, with its inputs; and set torch up to run it."""
    torch.set_num_threads(subject.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, subject.dtype or "float32")
    return unfolded(_module(subject)).to(dtype), _tensors(inputs, dtype)


def export_onnx(subject: Subject, path: Path) -> None:
    """Write the subject's network to `path`, as float32 ONNX in one file."""
    tensors = tuple(torch.from_numpy(array) for array in subject.read_inputs())
    module = unfolded(_module(subject))
    torch.onnx.export(module, tensors, path, dynamo=True, verbose=False, external_data=False)


def write_reference(subject: Subject) -> None:
    """Run the network as its author wrote it, in float64 if it can be converted, and store the outputs.

    A detector stays in float32: scores that round to the same number there are told apart in float64, and another of
    two overlapping boxes goes.
    """
    network = resolve(subject)
    exact = network.program is None and network.task not in DETECTION_TASKS
    dtype = torch.float64 if exact else torch.float32
    module = _module(subject).to(dtype)
    with torch.no_grad():
        outputs: Any = module(*_tensors(subject.read_inputs(), dtype))
    np.savez(subject.reference, *(part.numpy() for part in tree_leaves(outputs)))


def _tensors(arrays: Sequence[np.ndarray], dtype: torch.dtype) -> list[torch.Tensor]:
    """Return the arrays as tensors, those of floating-point numbers in `dtype`."""
    tensors = [torch.from_numpy(array) for array in arrays]
    return [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def unfolded(module: torch.nn.Module) -> torch.nn.Module:
    """Give the involutions of `module` the official naive form (involution_naive.py), the only one that peers take."""

    def forward(self: Involution2d, x: torch.Tensor) -> torch.Tensor:
        kernel = self.generate_kernel(x)
        n, groups, *_, h, w = kernel.shape
        windows = torch.nn.functional.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)
        windows = windows.view(n, groups, self.channels // groups, -1, h, w)
        return (kernel.view(n, groups, 1, -1, h, w) * windows).sum(3).view(n, self.channels, h, w)

    for part in module.modules():
        if isinstance(part, Involution2d):
            part.forward = forward.__get__(part)  # type: ignore[method-assign]
    return module


def _module(subject: Subject) -> torch.nn.Module:
    network = resolve(subject)
    if network.module is not None:
        return network.module
    assert network.program is not None
    return network.program.module()
