# SPDX-License-Identifier: Apache-2.0
"""Build a tensor expression for this CPU and run it on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ml_dtypes
import numpy as np
import tvm
from tvm import s_tir, te, tirx

from tvm_involution import lowering
from tvm_involution.cpu_features import has_feature
from tvm_involution.schedules import default_schedule
from tvm_involution.target import host_cpu, reference_cpu, resolve_target

AMX = ("amx-bf16", "amx-int8", "amx-tile")
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-2}


def as_dtype(array: np.ndarray, dtype: str) -> np.ndarray:
    """Round an array to `dtype`."""
    return array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def without_tiles() -> tvm.target.Target:
    """Return this CPU without AMX, whose tiles would take what the dot products of vectors are tested on."""
    spec = host_cpu()
    words = [word for word in spec.get("mattr", []) if "amx" not in word]  # type: ignore[attr-defined]
    if any(has_feature(tvm.target.Target({**spec, "mattr": words}), name) for name in AMX):
        words += [f"-{name}" for name in AMX]
    return tvm.target.Target({**spec, "mattr": words})


def run_expression(
    expression: Callable[..., te.Tensor],
    arrays: Sequence[np.ndarray],
    dtype: str | None,
    rule: str | None = None,
    target: tvm.target.Target | None = None,
) -> np.ndarray:
    """Make placeholders like `arrays`, build `expression` of them, and return what it computes, as float64.

    Args:
        dtype: of all arrays and the result; None where each array's and the expression's own are meant.
        rule: the schedule rule for this CPU that must be the first to take it; None for as it is written.
        target: another CPU than this, whose code runs here.
    """
    inputs = [
        te.placeholder(array.shape, dtype or str(array.dtype), name=f"input{i}") for i, array in enumerate(arrays)
    ]
    output = expression(*inputs)
    func = te.create_prim_func([*inputs, output])
    if target is None and rule:
        target = without_tiles() if rule == "PackedGemm" else resolve_target("llvm")
    target = target or reference_cpu()
    if rule:
        schedule, taker = default_schedule(func, target)
        assert schedule is not None and taker == rule
        func = schedule.mod["main"]
    library = lowering.build(func.with_attr("global_symbol", "main"), target)
    shape = [int(d) for d in output.shape]
    result = tvm.runtime.empty(shape, dtype or str(output.dtype))
    library["main"](*(tvm.runtime.tensor(as_dtype(array, dtype) if dtype else array) for array in arrays), result)
    return result.numpy().astype(np.float64)


def extremes(rng, shape: tuple[int, ...], low: int, high: int, dtype: str) -> np.ndarray:
    """Return random whole numbers, many of which are the least and the largest: where sums of 16 bits would end."""
    values = rng.integers(low, high + 1, shape)
    return np.where(rng.random(shape) < 0.3, rng.choice([low, high], shape), values).astype(dtype)


def random_point(rng: np.random.Generator, func: tirx.PrimFunc, spaces: Sequence[s_tir.Schedule]) -> s_tir.Schedule:
    """Return `func` scheduled by one of `spaces` with fresh decisions, and print them."""
    space = spaces[int(rng.integers(len(spaces)))]
    point = s_tir.Schedule(func, seed=int(rng.integers(1, 2**30)))
    s_tir.Trace(space.trace.insts, {}).apply_to_schedule(point, remove_postproc=False)
    print(point.trace)
    return point
