# SPDX-License-Identifier: Apache-2.0
"""Functions of float32 as arithmetic on vectors: within 4 units in the last place, special values as in torch."""

from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
import tvm
from tvm import te, topi

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target

SIZE = 1 << 19
FUNCTIONS = {
    "exp": (topi.exp, torch.exp),
    "log": (topi.log, torch.log),
    "tanh": (topi.tanh, torch.tanh),
    "sigmoid": (topi.sigmoid, torch.sigmoid),
    "erf": (topi.erf, torch.erf),
}
TARGETS = ["llvm", *(f'{{"kind": "llvm", "mcpu": "{cpu}"}}' for cpu in ("haswell", "x86-64-v2"))]
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1.2e-38, 88.72283, 88.72284, -87.34, -103.97, -104, 3e38],
    np.float32,
)


def build(function, size: int, target: str) -> tvm.runtime.Module:
    x = te.placeholder((size,), "float32", name="x")
    resolved = resolve_target(target)
    schedule, _ = default_schedule(te.create_prim_func([x, function(x)]), resolved)
    return lowering.build(schedule.mod["main"].with_attr("global_symbol", "main"), resolved)


def values(rng: np.random.Generator) -> list[np.ndarray]:
    """All numbers alike, then where the functions bend."""
    bits = rng.integers(0, 2**32, SIZE, dtype=np.uint32).view(np.float32)
    bits[: SPECIAL.size] = SPECIAL
    spans = ((-110, 110), (-4, 4), (-1, 1), (0.4, 3))
    return [bits, *(rng.uniform(*span, SIZE).astype(np.float32) for span in spans)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_four_units(rng, name, target):
    if target != "llvm" and platform.machine() != "x86_64":
        pytest.skip("needs an x86 CPU")
    ours, reference = FUNCTIONS[name]
    library = build(ours, SIZE, target)
    out = tvm.runtime.empty((SIZE,), "float32")
    for x in values(rng):
        library["main"](tvm.runtime.tensor(x), out)
        actual, exact = out.numpy(), reference(torch.from_numpy(x).double())
        expected = exact.float().numpy()
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(actual[~finite], expected[~finite])
        np.testing.assert_array_equal(np.signbit(actual[finite]), np.signbit(expected[finite]))
        error = np.abs(actual[finite] - exact.numpy()[finite]) / np.spacing(np.abs(expected[finite]))
        assert error.max() < 4, x[finite][error.argmax()]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_lane_calls_the_library(name):
    assembly = build(FUNCTIONS[name][0], 4096, TARGETS[1]).mod.inspect_source("asm")
    assert f"{name}f" not in assembly and "expf" not in assembly
