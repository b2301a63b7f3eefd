# SPDX-License-Identifier: Apache-2.0
"""PyTorch, eager."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..subject import Subject
from .contender import Contender


class Torch(Contender):
    """The official module, in the memory format that is faster: unfold likes NCHW, convolutions channels last."""

    name = "torch"
    package = "torch"
    modules = ("torch",)
    extra = "compile"
    settings = "eager, no gradients, the faster of contiguous and channels_last"

    def build(self, subject: Subject) -> None:
        """Time the memory formats, and note the faster one."""
        inputs = subject.read_inputs()
        seconds = {name: min(_times(self._prepare(subject, inputs, name))) for name in _FORMATS}
        (subject.folder / _CHOICE).write_text(min(_FORMATS, key=seconds.__getitem__))

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`."""
        return self._prepare(subject, inputs, (subject.folder / _CHOICE).read_text())

    def to_arrays(self, outputs: Any) -> list[np.ndarray]:
        """See `Contender.to_arrays`."""
        from torch.utils._pytree import tree_leaves

        return [(part.float() if part.is_floating_point() else part).numpy() for part in tree_leaves(outputs)]

    def _prepare(self, subject: Subject, inputs: Sequence[np.ndarray], memory_format: str) -> Callable[[], Any]:
        import torch

        from ..network import prepare_torch

        module, tensors = prepare_torch(subject, inputs)
        kind = getattr(torch, memory_format)
        module = module.to(memory_format=kind)  # type: ignore[call-overload]
        tensors = [tensor.to(memory_format=kind) if tensor.dim() == 4 else tensor for tensor in tensors]
        return lambda: module(*tensors)


_FORMATS = ("contiguous_format", "channels_last")
_CHOICE = "torch-memory-format"


def _times(call: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
