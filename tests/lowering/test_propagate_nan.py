# SPDX-License-Identifier: Apache-2.0
"""NaN survives maxima, minima and comparisons: on this CPU and, emulated, on GPUs."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import build_cuda, run_cuda
from programs import as_dtype
from tvm import te, tirx, topi

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.target import cpu_features, resolve_target

INF, NAN = float("inf"), float("nan")
SPECIAL = [NAN, INF, -INF, -0.0, 0.5, -2.0, 3.0, 9.0]

def gpu(architecture: str) -> tvm.target.Target:
    return tvm.target.Target({"kind": "cuda", "arch": architecture}, host="llvm")


def pairs(dtype: str) -> list[np.ndarray]:
    """Every two of the special values, as two arrays (8, 8)."""
    return [as_dtype(array, dtype) for array in np.meshgrid(SPECIAL, SPECIAL)]


def run(func: tirx.PrimFunc, arrays: list[np.ndarray], target: tvm.target.Target) -> np.ndarray:
    sch, _ = default_schedule(func, target)
    if target.kind.name == "cuda":
        return run_cuda(build_cuda(sch, target), arrays, target)[0]
    out = func.params[-1]
    result = tvm.runtime.empty([int(d) for d in out.shape], str(out.dtype))
    lowering.build(sch.mod, target)["main"](*(tvm.runtime.tensor(array) for array in arrays), result)
    return result.numpy()


def program(inputs: list[te.Tensor], output: te.Tensor) -> tirx.PrimFunc:
    return te.create_prim_func([*inputs, output]).with_attr("global_symbol", "main")


@pytest.fixture(params=["llvm", "haswell", "sm_90", "sm_75"])
def target(request):
    if request.param.startswith("sm_"):
        if not cuda_emulator.available:
            pytest.skip("needs g++")
        return gpu(request.param)
    here = resolve_target("llvm")
    if request.param == "llvm":
        return here
    haswell = resolve_target('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}')
    if not set(cpu_features(haswell)) <= set(cpu_features(here)):
        pytest.skip("this CPU has no AVX2")
    return haswell


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_pair_of_special_values(target, dtype):
    """Maximum, minimum, ReLU, clip, `!=` and maxima and minima over an axis, as NumPy has them."""
    if target.kind.name == "cuda" and target.attrs["arch"] == "sm_75" and dtype == "bfloat16":
        pytest.skip("no such type there")
    a, b = (te.placeholder((8, 8), dtype, name) for name in "ab")
    outputs = [topi.maximum(a, b), topi.minimum(a, b), topi.nn.relu(a), topi.clip(a, -1, 6), topi.not_equal(a, b)]
    outputs = [topi.cast(output, "float32") for output in outputs]
    # (8, 16) -> (16): as many as a vector's lanes, and beginning with what is least
    both = topi.concatenate([a, topi.maximum(a, topi.full((8, 8), dtype, -INF))], 1)
    outputs += [topi.cast(reduce(both, axis=0), "float32") for reduce in (topi.max, topi.min)]
    x, y = (array.astype("float64") for array in pairs(dtype))
    expected = [np.maximum(x, y), np.minimum(x, y), np.maximum(x, 0), np.clip(x, -1, 6), x != y]
    expected += [reduce(np.concatenate([x, x], 1), axis=0) for reduce in (np.max, np.min)]
    for output, right in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(run(program([a, b], output), pairs(dtype), target), right)
