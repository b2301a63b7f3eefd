# SPDX-License-Identifier: Apache-2.0
"""PyTorch, compiled by Inductor."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..subject import Subject
from .torch import Torch


class Inductor(Torch):
    """`torch.compile` with frozen weights."""

    name = "inductor"
    settings = "torch.compile, freezing"

    def build(self, subject: Subject) -> None:
        """Fill the cache of compiled code, as an earlier run of a program would have."""
        self.load(subject, subject.read_inputs())()

    def load(self, subject: Subject, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
        """See `Contender.load`; the code is compiled, or found in the cache, when the call is first made."""
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(subject.folder / "inductor")
        import torch
        import torch._inductor.config

        from ..network import prepare_torch

        module, tensors = prepare_torch(subject, inputs)
        torch._inductor.config.freezing = True
        compiled = torch.compile(module)
        return lambda: compiled(*tensors)
