# SPDX-License-Identifier: Apache-2.0
"""Weights become arguments, also of functions that others call."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from tvm_involution.relax.lift_weights import lift_weights


def test_functions_that_call_others(rng: np.random.Generator) -> None:
    """A weight that two functions have is one; what is small, or no tensor, stays; the answers are the same."""
    large = rng.standard_normal((64, 64), np.float32)
    other = rng.standard_normal((64, 64), np.float32)
    small = rng.standard_normal((64,), np.float32)
    x = relax.Var("x", relax.TensorType((64, 64), "float32"))
    y = relax.Var("y", relax.TensorType((64, 64), "float32"))
    builder = relax.BlockBuilder()
    with builder.function("inner", [y], private=True):
        inner = builder.emit_func_output(builder.emit(relax.op.multiply(y, relax.const(large))))
    with builder.function("batch_1", [x]):
        z = builder.emit(relax.Call(inner, [builder.emit(relax.op.add(x, relax.const(other)))]))
        z = builder.emit(relax.op.add(relax.op.add(z, relax.const(large.copy())), relax.const(small)))
        builder.emit_func_output(z)
    mod = relax.get_pipeline("zero")(builder.get())
    lifted, weights = lift_weights(mod)
    relax.analysis.well_formed(lifted)  # raises where it is not
    assert [dtype for dtype, _ in weights] == ["float32"] * 2
    assert sorted(value.tobytes() for _, value in weights) == sorted([large.tobytes(), other.tobytes()])
    assert len(mod["batch_1"].params) == 1 and len(lifted["batch_1"].params) == len(lifted["inner"].params) == 3
    machine = relax.VirtualMachine(tvm.compile(lifted, "llvm", relax_pipeline="default_build"), tvm.cpu())
    given = rng.standard_normal((64, 64), np.float32)
    found = machine["batch_1"](*(tvm.runtime.tensor(value) for value in (given, *(value for _, value in weights))))
    np.testing.assert_allclose(found.numpy(), (given + other) * large + large + small, rtol=1e-5, atol=1e-5)
