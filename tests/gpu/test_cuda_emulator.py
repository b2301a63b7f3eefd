# SPDX-License-Identifier: Apache-2.0
"""The emulator of CUDA C computes what a GPU would, and notices what a GPU would not."""

from __future__ import annotations

from dataclasses import replace

import cuda_emulator
import numpy as np
import pytest
import tvm
from cuda_emulator import build_cuda, run_cuda
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm
from tvm import te
from tvm.script import tirx as T

from tvm_involution.schedules.gpu import ThreadPerOutput
from tvm_involution.te import involution2d

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
TARGET = tvm.target.Target({"kind": "cuda", "arch": "sm_80"}, host="llvm")


@T.prim_func(s_tir=True)
def reverse(A: T.Buffer((64,), "float32"), B: T.Buffer((64,), "float32")):
    T.launch_thread("blockIdx.x", 1)
    tx = T.launch_thread("threadIdx.x", 16)
    tile = T.alloc_buffer((64,), "float32", scope="shared")
    T.evaluate(T.s_tir.cp_async_raw.legacy(tile.data, tx * 4, A.data, tx * 4, 16, dtype="float32"))
    T.ptx["cp.async.commit_group"]()
    T.ptx["cp.async.wait_group"](0)
    T.evaluate(T.tvm_storage_sync("shared"))
    for i in range(4):
        B[tx * 4 + i] = tile[63 - tx * 4 - i]


@pytest.fixture(scope="module")
def reversal():
    return build_cuda(reverse, TARGET)


def test_shared_memory_and_asynchronous_copies(rng, reversal):
    x = rng.standard_normal(64).astype("float32")
    np.testing.assert_array_equal(run_cuda(reversal, [x], TARGET)[0], x[::-1])


@pytest.mark.parametrize("left_out", ["__syncthreads();", "tvm_builtin_ptx_cp_async_wait_group_async_wait_group_0();"])
def test_what_is_read_too_early_is_nan(rng, reversal, left_out):
    early = replace(reversal, source=reversal.source.replace(f"  {left_out}\n", ""))
    assert early.source != reversal.source
    assert np.isnan(run_cuda(early, [rng.standard_normal(64).astype("float32")], TARGET)[0]).any()


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("__syncthreads();", "if (threadIdx.x != 5) __syncthreads();", r"thread \(\d+, 0, 0\): not all threads reach"),
        ("B_ptr[(", "B_ptr[64 + (", r"arg1 has 256 bytes; block .* byte: \d+"),
        ("B_ptr[(", "B_ptr[-1 + (", "arg1: byte -4 of 256 was written"),
        ("((63 - i)", "((64 - i)", r"tile_ptr has 256 bytes; block .* byte: 256"),
        ("A_ptr[(", "A_ptr[1 + (", "misaligned cp.async"),
    ],
)
def test_mistakes_are_found(rng, reversal, good, bad, words):
    assert reversal.source.count(good) == 1
    wrong = replace(reversal, source=reversal.source.replace(good, bad))
    with pytest.raises(AssertionError, match=words):
        run_cuda(wrong, [rng.standard_normal(64).astype("float32")], TARGET)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_schedule_with_two_kernels(rng, dtype):
    """The first kernel's result is a temporary; its outputs are no multiple of a block's threads."""
    x, kernel = (as_dtype(rng.standard_normal(shape), dtype) for shape in ((1, 6, 5, 7), (1, 2, 3, 3, 5, 7)))
    inputs = [te.placeholder(array.shape, dtype, name) for array, name in ((x, "x"), (kernel, "kernel"))]
    once = involution2d(*inputs, padding=1)
    sch = ThreadPerOutput().apply(te.create_prim_func([*inputs, involution2d(once, inputs[1], padding=1)]), TARGET)
    program = build_cuda(sch, TARGET)
    assert len(program.launches) == 2
    expected = reference(reference(x, kernel, padding=(1, 1)), kernel, padding=(1, 1))
    assert relative_norm(run_cuda(program, [x, kernel], TARGET)[0], expected) < TOLERANCE[dtype]


def tensor_core_product(dtype: str, transposed: bool):
    """C (16, 8) = A (16, 16) B, one mma of a warp; B as (N, K), or as (K, N) loaded transposed."""
    ptx = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    stride = 8 if transposed else 16

    @T.prim_func(s_tir=True, check_well_formed=False)
    def main(a: T.Buffer((256,), dtype), b: T.Buffer((128,), dtype), c: T.Buffer((16, 8), "float32")):
        T.launch_thread("blockIdx.x", 1)
        lane = T.launch_thread("threadIdx.x", 32)
        a_tile = T.alloc_buffer((256,), dtype, scope="shared")
        b_tile = T.alloc_buffer((128,), dtype, scope="shared")
        a_part = T.alloc_buffer((8,), dtype, scope="local")
        b_part = T.alloc_buffer((4,), dtype, scope="local")
        sums = T.alloc_buffer((4,), "float32", scope="local")
        for i in range(8):
            a_tile[lane * 8 + i] = a[lane * 8 + i]
        for i in range(4):
            b_tile[lane * 4 + i] = b[lane * 4 + i]
            sums[i] = T.float32(0)
        T.evaluate(T.tvm_storage_sync("shared"))
        T.evaluate(
            T.ptx_legacy.ldmatrix(
                False, 4, ".b16", a_part.data, 0, a_tile.data, lane % 16 * 16 + lane // 16 * 8, dtype=dtype
            )
        )
        row = T.if_then_else(transposed, lane % 16 * stride, lane % 8 * stride + lane // 8 % 2 * 8)
        T.evaluate(T.ptx_legacy.ldmatrix(transposed, 2, ".b16", b_part.data, 0, b_tile.data, row, dtype=dtype))
        T.evaluate(
            T.ptx_legacy.mma(
                "m16n8k16", "row", "col", ptx, ptx, "fp32", a_part.data, 0, b_part.data, 0, sums.data, 0, False,
                dtype="float32",
            )
        )  # fmt: skip
        for i in range(4):
            c[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = sums[i]

    return main


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_tensor_cores(rng, dtype, transposed):
    a, b = as_dtype(rng.standard_normal((16, 16)), dtype), as_dtype(rng.standard_normal((16, 8)), dtype)
    stored = b if transposed else b.T
    actual = run_cuda(tensor_core_product(dtype, transposed), [a.ravel(), np.ascontiguousarray(stored).ravel()], TARGET)
    assert relative_norm(actual[0], a.astype("float64") @ b.astype("float64")) < 1e-6
