# SPDX-License-Identifier: Apache-2.0
"""The tensor intrinsics of `te.conv2d_mma`: one chunk of a tile of 16 channels x 8 pixels, from shared memory.

TVM's own (`tvm.s_tir.tensor_intrin`) take half a minute to import, and load fragments with `ldmatrix`, which operands
that are packed in the order of the registers do not need.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import tvm
from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T

from ...target import compute_capability
from ...te.mma_convolution import LANES, MmaFragments

_PTX_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "tf32"}


def mma_fragments(
    target: tvm.target.Target, dtype: str, tf32: bool = False, channels: int | None = None
) -> MmaFragments | None:
    """Return the fragments of the product of `dtype` that `target` has, with sums in float32; None where it has none.

    Args:
        tf32: multiply float32 by its first 10 bits of mantissa.
        channels: of the sum, where it may be so short that fragments of half the width hold it.
    """
    capability = compute_capability(target) if target.kind.name == "cuda" else 0
    if dtype == "float16" and capability >= 75:
        whole = MmaFragments(dtype, 16 if capability >= 80 else 8)
    elif capability >= 80 and (dtype == "bfloat16" or (dtype == "float32" and tf32)):
        whole = MmaFragments(dtype, 16 if dtype == "bfloat16" else 8)
    else:
        return None
    half = replace(whole, lane_bytes=8)
    return half if channels is not None and channels <= half.chunk else whole


@functools.cache
def mma_intrinsic(fragments: MmaFragments, weights: str = "shared") -> str:
    """Return the name of the intrinsic that multiplies `fragments`, registered.

    Args:
        weights: the scope that they come from, "shared" or "global".
    """
    product = f"{_PTX_TYPES[fragments.dtype]}_k{fragments.depth}"
    name = f"tvm_involution.mma_{product}_{fragments.lane_bytes}_bytes_{weights}"
    TensorIntrin.register(name, *_functions(fragments, weights))
    return name


def register_mma_intrinsics() -> None:
    """Register all, for traces that name them."""
    for dtype, depth in (("float16", 16), ("bfloat16", 16), ("float16", 8), ("float32", 8)):
        mma_intrinsic(MmaFragments(dtype, depth))
        for lane_bytes in (8, 16):
            mma_intrinsic(MmaFragments(dtype, depth, lane_bytes), "global")


def _functions(f: MmaFragments, scope: str) -> tuple[tvm.tirx.PrimFunc, tvm.tirx.PrimFunc]:
    """Return what the intrinsic computes and how."""
    dtype, ptx_type, shape = f.dtype, _PTX_TYPES[f.dtype], f"m16n8k{f.depth}"
    steps, values, weights, pair = f.steps, f.values, f.weights, f.pair
    depth = f.registers * f.pair

    @T.prim_func(s_tir=True)
    def description(w: T.handle, x: T.handle, sums: T.handle) -> None:
        W = T.match_buffer(w, (steps, LANES, weights), dtype, align=16, offset_factor=1, scope=scope)
        X = T.match_buffer(x, (LANES, values), dtype, align=16, offset_factor=1, scope="shared")
        D = T.match_buffer(sums, (LANES, 1, 1, 1, 4), "float32", align=16, offset_factor=1, scope="warp")
        with T.sblock("root"):
            T.reads(D[0:LANES, 0, 0, 0, 0:4], W[0:steps, 0:LANES, 0:weights], X[0:LANES, 0:values])
            T.writes(D[0:LANES, 0, 0, 0, 0:4])
            for lane, r, step, quad, element in T.grid(LANES, 4, steps, 4, depth):
                with T.sblock("mma"):
                    i, v, s, q, e = T.axis.remap("SSRRR", [lane, r, step, quad, element])
                    D[i, 0, 0, 0, v] = D[i, 0, 0, 0, v] + T.Cast(
                        "float32", W[s, i // 4 * 4 + q, (e // pair * 2 + v // 2) * pair + e % pair]
                    ) * T.Cast("float32", X[(i % 4 * 2 + v % 2) * 4 + q, s * depth + e])

    # programs are compared without loops of one iteration, descriptions with theirs (TVM 0.27)
    @T.prim_func(s_tir=True)
    def one_step(w: T.handle, x: T.handle, sums: T.handle) -> None:
        W = T.match_buffer(w, (1, LANES, weights), dtype, align=16, offset_factor=1, scope=scope)
        X = T.match_buffer(x, (LANES, values), dtype, align=16, offset_factor=1, scope="shared")
        D = T.match_buffer(sums, (LANES, 1, 1, 1, 4), "float32", align=16, offset_factor=1, scope="warp")
        with T.sblock("root"):
            T.reads(D[0:LANES, 0, 0, 0, 0:4], W[0, 0:LANES, 0:weights], X[0:LANES, 0:values])
            T.writes(D[0:LANES, 0, 0, 0, 0:4])
            for lane, r, quad, element in T.grid(LANES, 4, 4, depth):
                with T.sblock("mma"):
                    i, v, q, e = T.axis.remap("SSRR", [lane, r, quad, element])
                    D[i, 0, 0, 0, v] = D[i, 0, 0, 0, v] + T.Cast(
                        "float32", W[0, i // 4 * 4 + q, (e // pair * 2 + v // 2) * pair + e % pair]
                    ) * T.Cast("float32", X[(i % 4 * 2 + v % 2) * 4 + q, e])

    # The scalar reads are dropped later; until then they keep StorageRewrite from making arrays of vectors, which
    # cp.async and the offsets into fragments cannot have (TVM 0.27).
    @T.prim_func(s_tir=True)
    def implementation(w: T.handle, x: T.handle, sums: T.handle) -> None:
        s0 = T.int32()
        s1 = T.int32()
        s2 = T.int32()
        s3 = T.int32()
        W = T.match_buffer(w, (steps, LANES, weights), dtype, align=16, offset_factor=1, scope=scope)
        X = T.match_buffer(x, (LANES, values), dtype, align=16, offset_factor=1, scope="shared")
        D = T.match_buffer(
            sums, (LANES, 1, 1, 1, 4), "float32", align=16, offset_factor=1, scope="warp", strides=[s0, s1, s2, s3, 1]
        )
        with T.sblock("root"):
            T.reads(D[0:LANES, 0, 0, 0, 0:4], W[0:steps, 0:LANES, 0:weights], X[0:LANES, 0:values])
            T.writes(D[0:LANES, 0, 0, 0, 0:4])
            for lane in T.thread_binding(0, LANES, "threadIdx.x"):
                with T.sblock("fragments"):
                    T.reads(D[0:LANES, 0, 0, 0, 0:4], W[0:steps, 0:LANES, 0:weights], X[0:LANES, 0:values])
                    T.writes(D[0:LANES, 0, 0, 0, 0:4])
                    w_part = T.sblock_alloc_buffer((steps, weights), dtype, scope="local")
                    x_part = T.sblock_alloc_buffer((values,), dtype, scope="local")
                    T.evaluate(W[0, 0, 0])
                    T.evaluate(X[0, 0])
                    for i in T.vectorized(values):
                        x_part[i] = X[lane, i]
                    T.evaluate(x_part[0])
                    for s in T.unroll(steps):
                        for i in T.vectorized(weights):
                            w_part[s, i] = W[s, lane, i]
                        T.evaluate(w_part[0, 0])
                        T.evaluate(
                            T.ptx_legacy.mma(
                                shape, "row", "col", ptx_type, ptx_type, "fp32",
                                w_part.data, w_part.elem_offset + s * weights,
                                x_part.data, x_part.elem_offset + s * depth,
                                D.data, D.elem_offset, False, dtype="float32",
                            )
                        )  # fmt: skip

    return description if steps > 1 else one_step, implementation
