# SPDX-License-Identifier: Apache-2.0
"""NaN survives maxima, minima and comparisons: on this CPU and, emulated, on GPUs."""

from __future__ import annotations

import cuda_emulator
import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers quantized_decomposed
import tvm
from cuda_emulator import build_cuda, run_cuda
from programs import as_dtype
from tvm import s_tir, te, tirx, topi

from tvm_involution import lowering
from tvm_involution.cpu_features import cpu_features
from tvm_involution.schedules import default_schedule
from tvm_involution.target import resolve_target

INF, NAN = float("inf"), float("nan")
SPECIAL = [NAN, INF, -INF, -0.0, 0.5, -2.0, 3.0, 9.0]


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


@pytest.fixture(scope="module", params=["llvm", "haswell"])
def cpu(request) -> tvm.target.Target:
    here = resolve_target("llvm")
    if request.param == "llvm":
        return here
    haswell = resolve_target('{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell"}')
    if not set(cpu_features(haswell)) <= set(cpu_features(here)):
        pytest.skip("this CPU has no AVX2")
    return haswell


def programs(dtype: str) -> dict[str, tuple[tirx.PrimFunc, np.ndarray]]:
    """Programs of every two special values, with what NumPy makes of them."""
    a, b = (te.placeholder((8, 8), dtype, name) for name in "ab")
    x, y = (array.astype("float64") for array in pairs(dtype))
    # (16, 8) -> (16): the first column of each half has what is least, or NaN
    both = topi.transpose(topi.concatenate([a, b], 1))
    xy = np.concatenate([x, y], 1).T
    found = {
        "maximum": (topi.maximum(a, b), np.maximum(x, y)),
        "minimum": (topi.minimum(a, b), np.minimum(x, y)),
        "relu": (topi.nn.relu(a), np.maximum(x, 0)),
        "clip": (topi.clip(a, -1, 6), np.clip(x, -1, 6)),
        "unequal": (topi.not_equal(a, b), x != y),
        "max": (topi.max(both, axis=1), xy.max(1)),
        "min": (topi.min(both, axis=1), xy.min(1)),
    }
    return {
        name: (te.create_prim_func([a, b, topi.cast(output, "float32")]).with_attr("global_symbol", "main"), expected)
        for name, (output, expected) in found.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_pair_of_special_values(cpu, dtype):
    for name, (func, expected) in programs(dtype).items():
        np.testing.assert_array_equal(run(func, pairs(dtype), cpu), expected, name)


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_on_gpus(dtype):
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    for name in ("minimum", "clip", "max"):
        func, expected = programs(dtype)[name]
        np.testing.assert_array_equal(run(func, pairs(dtype), target), expected, name)


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
def test_on_a_gpu_without_the_instructions():
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_75"}, host="llvm")
    func, expected = programs("float16")["maximum"]
    np.testing.assert_array_equal(run(func, pairs("float16"), target), expected)


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_vectors_on_gpus(dtype):
    """Eight numbers of 16 bits are a uint4."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_90"}, host="llvm")
    a, b = (te.placeholder((8, 8), dtype, name) for name in "ab")
    sch = s_tir.Schedule(te.create_prim_func([a, b, topi.maximum(a, b)]).with_attr("global_symbol", "main"))
    (block,) = sch.get_child_blocks(sch.get_sblock("root"))
    row, column = sch.get_loops(block)
    outer, lanes = sch.split(column, [None, 16 // np.dtype(dtype).itemsize])
    sch.bind(sch.fuse(row, outer), "threadIdx.x")
    sch.vectorize(lanes)
    built = build_cuda(sch, target)
    assert f"tvm_involution_max_{dtype}x" in built.source
    (actual,) = run_cuda(built, pairs(dtype), target)
    np.testing.assert_array_equal(actual, np.maximum(*pairs(dtype)))


@pytest.mark.parametrize(("dtype", "low", "high", "zero"), [("uint8", 0, 255, 10), ("int8", -128, 127, -5)])
def test_bytes(cpu, rng, dtype, low, high, zero):
    """NaN becomes 0 and infinities the last byte, as torch quantizes."""
    x = np.concatenate([SPECIAL, 40 * rng.standard_normal(59), SPECIAL]).astype(np.float32)
    a = te.placeholder(x.shape, "float32", "a")
    moved = topi.add(topi.round(topi.multiply(a, 0.5)), float(zero))
    result = topi.cast(topi.clip(moved, float(low), float(high)), dtype)
    quantized = torch.ops.quantized_decomposed.quantize_per_tensor
    expected = quantized(torch.from_numpy(x), 2.0, zero, low, high, getattr(torch, dtype))
    assert np.array_equal(run(te.create_prim_func([a, result]), [x], cpu), expected.numpy())
