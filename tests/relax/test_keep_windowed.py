# SPDX-License-Identifier: Apache-2.0
"""What many slices read is computed once: programs do not grow with the steps before them, and compute the same."""

from __future__ import annotations

import pytest
import torch
from reference import relative_norm
from torch import Tensor, nn
from torch.nn import functional
from tvm import tirx

import tvm_involution as ti
from tvm_involution.frontend.importer import export_module, import_exported_program
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target


class Propagation(nn.Module):
    """Each pixel becomes a weighted sum of its neighbours, several times: 8 slices of what 8 slices made."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, affinity: Tensor) -> Tensor:
        height, width = x.shape[2:]
        for _ in range(self.steps):
            padded, total = functional.pad(x, (1, 1, 1, 1)), x * affinity[:, 8:]
            for tap in range(8):
                row, column = tap // 3, tap % 3
                total = total + affinity[:, tap : tap + 1] * padded[:, :, row : row + height, column : column + width]
            x = torch.tanh(total)
        return x


def joined(x: Tensor) -> Tensor:
    return torch.cat([torch.roll(x, shift, 2) * (shift + 1) for shift in range(12)], 1).sum(1)


def arguments() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 9, 7), torch.randn(2, 9, 9, 7) / 3


def longest(steps: int) -> int:
    """Return the length of the longest program that is made of so many steps."""
    mod = import_exported_program(export_module(Propagation(steps), arguments()))
    mod = pipeline.run(mod, resolve_target("llvm"), until="lower operators")
    return max(len(func.script()) for _, func in mod.functions_items() if isinstance(func, tirx.PrimFunc))


def test_programs_do_not_grow_with_the_steps(rng):
    assert longest(3) < 1.2 * longest(1)


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_after_each_other(tmp_path, steps, rng):
    module, inputs = Propagation(steps), arguments()
    ti.compile((module, inputs)).save(tmp_path / "steps.so")
    expected = module(*(x.double() for x in inputs))
    assert relative_norm(ti.load(tmp_path / "steps.so")(*inputs), expected) < 1e-5


def test_a_concatenation_of_many(tmp_path, rng):
    class Joined(nn.Module):
        def forward(self, x):
            return joined(x)

    x = torch.randn(2, 5, 9, 7)
    ti.compile((Joined(), x)).save(tmp_path / "joined.so")
    assert relative_norm(ti.load(tmp_path / "joined.so")(x), joined(x.double())) < 1e-5
