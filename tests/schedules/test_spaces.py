# SPDX-License-Identifier: Apache-2.0
"""Every point of a rule's space computes what the program says; its first point is the default."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tvm
import tvm_ffi
from programs import TOLERANCE, as_dtype, random_point
from reference import relative_norm
from tvm import te

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule, rules_for
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, depthwise_conv2d, involution2d, local_attention2d, matmul_packed
from tvm_involution.te.accumulate import accumulator_dtype
from tvm_involution.te.norm import norm_rows

AVX2 = '{"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "haswell", "num-cores": 2}'


def programs(dtype: str) -> dict[str, tvm.tirx.PrimFunc]:
    """Programs with odd sizes, strides, padding, epilogues and channels that no tile divides."""

    def tensor(name: str, *shape: int) -> te.Tensor:
        return te.placeholder(shape, dtype, name)

    def add_relu(sums: te.Tensor, bias: te.Tensor) -> te.Tensor:
        zero = tvm.tirx.const(0, dtype)
        return te.compute(sums.shape, lambda *i: tvm.tirx.max(sums(*i) + bias[i[-1]], zero), name="relu")

    made = {}
    # 64 channels 256 bytes apart; 1024 channels 4 KiB apart, where tiles copy their input
    for name, shape, weight, out, stride, padding in (
        ("conv1x1", (2, 7, 14, 24), (3, 1, 1, 24, 16), 40, (1, 1), (0, 0, 0, 0)),
        ("conv1x1_thrashing", (1, 2, 14, 1024), (2, 1, 1, 1024, 32), 64, (1, 1), (0, 0, 0, 0)),
        ("conv1x1_strided", (1, 9, 15, 32), (1, 1, 1, 32, 32), 32, (2, 2), (0, 0, 0, 0)),
        ("conv3x3", (1, 9, 13, 5), (2, 3, 3, 5, 16), 21, (2, 1), (1, 1, 1, 1)),
    ):
        x, w, bias = tensor("x", *shape), tensor("w", *weight), tensor("b", out)
        made[name] = te.create_prim_func([x, w, bias, add_relu(conv2d_packed(x, w, out, stride, padding), bias)])
    x, w = tensor("x", 3, 100), tensor("w", 2, 1, 1, 100, 16)
    made["linear"] = te.create_prim_func([x, w, matmul_packed(x, w, 27)])
    x, w, bias = tensor("x", 2, 9, 14, 58), tensor("w", 3, 3, 64), tensor("b", 58)
    sums = depthwise_conv2d(x, w, (2, 1), (1, 1, 1, 1), strip=14)
    made["depthwise"] = te.create_prim_func([x, w, bias, add_relu(sums, bias)])
    for name, shape, kernel, stride, bias_channels in (
        ("involution", (1, 9, 14, 48), (1, 9, 14, 27), 1, 48),
        ("involution_strided", (2, 9, 7, 12), (2, 5, 4, 98), 2, 12),
    ):
        x, w, bias = tensor("x", *shape), tensor("k", *kernel), tensor("b", bias_channels)
        size = 3 if kernel[3] == 27 else 7
        sums = involution2d(x, w, stride, size // 2, 1, "NHWC", size)
        made[name] = te.create_prim_func([x, w, bias, add_relu(sums, bias)])
    x, gamma, beta = tensor("x", 2, 6, 5, 7), tensor("g", 6), tensor("b", 6)
    made["norm"] = te.create_prim_func([x, gamma, beta, norm_rows(x, gamma, beta, 1, 1e-3, 3)])
    x, window = tensor("x", 2, 7, 9, 96), [te.reduce_axis((0, 3), name) for name in "uv"]
    wide = accumulator_dtype(dtype)
    sums = te.compute(
        (2, 5, 7, 96),
        lambda n, i, j, c: te.sum(x[n, i + window[0], j + window[1], c].astype(wide), window),
        name="sums",
    )
    made["pool"] = te.create_prim_func(
        [x, te.compute(sums.shape, lambda *i: (sums(*i) / 9).astype(dtype), name="mean")]
    )
    for border, size, lanes in (("masked", (3, 5), 16), ("shifted", (3, 3), 8), ("zeros", (7, 7), 4)):
        query, key, value = (tensor(name, 1, 9, 14, channels) for name, channels in (("q", 8), ("k", 8), ("v", 24)))
        sums = local_attention2d(query, key, value, size, 2, layout="NHWC", border=border, lanes=lanes)
        bias = tensor("b", 24)
        made[f"attention_{border}"] = te.create_prim_func([query, key, value, bias, add_relu(sums, bias)])
    return made


def run(func: tvm.tirx.PrimFunc, arrays: list[np.ndarray], dtype: str, target: tvm.target.Target) -> np.ndarray:
    library = lowering.build(func.with_attr("global_symbol", "main"), target)
    tensors = [tvm.runtime.tensor(as_dtype(array, dtype)) for array in arrays]
    result = tvm.runtime.empty([int(d) for d in func.params[-1].shape], dtype)
    library["main"](*tensors, result)
    return result.numpy().astype(np.float64)


@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
@pytest.mark.parametrize("name", list(programs("float32")))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_random_points(rng, name, dtype, target):
    resolved = resolve_target(target)
    func = programs(dtype)[name]
    arrays = [rng.standard_normal([int(d) for d in buffer.shape]) for buffer in func.params[:-1]]
    arrays = [as_dtype(array, dtype).astype(np.float64) for array in arrays]
    # the program as it is written, on the same numbers in float64
    plain = programs("float64")[name]
    expected = run(plain, arrays, "float64", tvm.target.Target("llvm"))
    spaces = next(s for s in (rule.apply(func, resolved, True) for rule in rules_for(resolved)) if s is not None)
    assert any(space.trace.decisions for space in spaces), "nothing to choose"
    for space in spaces:
        point = random_point(rng, func, [space])
        assert relative_norm(run(point.mod["main"], arrays, dtype, resolved), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
def test_the_first_point_is_the_default(target):
    resolved = resolve_target(target)
    for func in programs("float32").values():
        spaces = next(s for s in (rule.apply(func, resolved, True) for rule in rules_for(resolved)) if s is not None)
        default, _ = default_schedule(func, resolved)
        assert tvm_ffi.structural_equal(spaces[0].mod, default.mod)


@pytest.mark.parametrize("target", ["llvm", AVX2], ids=["here", "avx2"])
@pytest.mark.parametrize("name", ["conv1x1", "conv3x3"])
def test_groups_of_tiles_share_a_pack(rng, monkeypatch, name, target):
    """As where a pack of weights is larger than the cache; groups reach over rows and pictures."""
    resolved, func = resolve_target(target), programs("float32")[name]
    ungrouped, _ = default_schedule(func, resolved)
    monkeypatch.setattr("tvm_involution.schedules.cpu.packed_gemm._L2", 1000)
    default, rule = default_schedule(func, resolved)
    assert rule == "PackedGemm" and not tvm_ffi.structural_equal(default.mod, ungrouped.mod)
    arrays = [rng.standard_normal([int(d) for d in buffer.shape]) for buffer in func.params[:-1]]
    arrays = [as_dtype(array, "float32").astype(np.float64) for array in arrays]
    expected = run(programs("float64")[name], arrays, "float64", tvm.target.Target("llvm"))
    assert relative_norm(run(default.mod["main"], arrays, "float32", resolved), expected) < TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("channels", "dtype", "asked"),
    [(196, "float16", True), (392, "float16", True), (192, "float16", False), (196, "float32", False)],
)
def test_a_filled_up_pack_leaves_in_small_tiles(channels, dtype, asked):
    """Lanes that are asked one by one whether they are there must not be more than LLVM unrolls."""
    x = te.placeholder((1, 8, 64, 16), dtype, "x")
    weight = te.placeholder((-(-channels // 16), 1, 1, 16, 16), dtype, "weight")
    func = te.create_prim_func([x, weight, conv2d_packed(x, weight, channels)])
    sch, rule = default_schedule(func, resolve_target(AVX2.replace("haswell", "znver4")))
    assert rule == "PackedGemm"
    extents = [int(sch.get(loop).extent) for loop in sch.get_loops(sch.get_sblock("conv2d_out"))][1:]
    assert (math.prod(extents) <= 128) == asked
