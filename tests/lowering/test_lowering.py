# SPDX-License-Identifier: Apache-2.0
"""What the lowering of scheduled programs makes of them: sums in registers, weights and residuals prefetched."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
import tvm
from reference import relative_norm
from tvm import te, tirx, topi
from tvm.script import tirx as T

from tvm_involution import lowering
from tvm_involution.schedules import default_schedule
from tvm_involution.schedules.cpu.dot_bf16 import has_dot_bf16
from tvm_involution.target import resolve_target
from tvm_involution.te import conv2d_packed, matmul_packed, pack_weight

# target -> its prefetch of data into the second-level cache, where weights go
PREFETCHES = {
    "x86_64-linux-gnu -mcpu=znver4": "prefetcht1",
    "x86_64-linux-gnu -mcpu=haswell": "prefetcht1",
    "aarch64-linux-gnu -mattr=+neon": r"prfm\s+pldl2keep",
}
# and into the first, where residuals go
FIRST_LEVEL = {"prefetcht1": "prefetcht0", r"prfm\s+pldl2keep": r"prfm\s+pldl1keep"}


def target_of(text: str) -> tvm.target.Target:
    triple, option = text.split(" -")
    name, value = option.split("=")
    return tvm.target.Target({"kind": "llvm", "mtriple": triple, name: [value] if name == "mattr" else value})


def convolution(inputs: int, outputs: int, residual: bool = False, dtype: str = "float32") -> tirx.PrimFunc:
    """1x1 of 14x14 pixels, with bias, the residual where there is one, and ReLU."""
    x = te.placeholder((1, 14, 14, inputs), dtype, "x")
    pairs = (inputs // 2, 16, 2) if dtype == "bfloat16" else (inputs, 16)
    weight = te.placeholder((-(-outputs // 16), 1, 1, *pairs), dtype, "weight")
    bias = te.placeholder((1, 1, 1, outputs), dtype, "bias")
    arguments = [x, weight, bias]
    out = topi.add(conv2d_packed(x, weight, outputs), bias)
    if residual:
        arguments.append(te.placeholder(out.shape, dtype, "residual"))
        out = topi.add(out, arguments[-1])
    return te.create_prim_func([*arguments, topi.nn.relu(out)]).with_attr("global_symbol", "main")


def assembly(func: tirx.PrimFunc, target: tvm.target.Target) -> str:
    sch, rule = default_schedule(func, target)
    assert rule == "PackedGemm"
    return str(lowering.build(sch.mod, target).mod.inspect_source("asm"))


@pytest.mark.parametrize("text", list(PREFETCHES))
def test_weights_are_prefetched(text):
    """128 KiB are; 16 KiB, which a cache keeps, and the only pack of outputs are not."""
    target = target_of(text)
    assert re.search(PREFETCHES[text], assembly(convolution(256, 128), target))
    assert not re.search(PREFETCHES[text], assembly(convolution(64, 64), target))
    assert not re.search(PREFETCHES[text], assembly(convolution(2048, 16), target))
    if has_dot_bf16(target):
        assert re.search(PREFETCHES[text], assembly(convolution(256, 128, dtype="bfloat16"), target))


@pytest.mark.parametrize("text", list(PREFETCHES))
def test_residuals_are_prefetched(text):
    """A tile's lines before it is multiplied: of 98 KiB of a residual, not of 12, nor of a bias."""
    target, prefetch = target_of(text), FIRST_LEVEL[PREFETCHES[text]]
    source = assembly(convolution(32, 128, residual=True), target)
    # a loop's body: its prefetches, then the products, then the store
    body = source[re.search(prefetch, source).start() :]
    assert re.search(r"fmadd|fmla", body) and len(re.findall(prefetch, source)) > 1
    assert not re.search(prefetch, assembly(convolution(32, 16, residual=True), target))
    assert not re.search(prefetch, assembly(convolution(32, 128), target))
    if has_dot_bf16(target):
        assert re.search(prefetch, assembly(convolution(32, 256, residual=True, dtype="bfloat16"), target))


@pytest.mark.parametrize("text", list(PREFETCHES))
def test_sums_stay_in_registers(text):
    """No memory from the pool for them, and no store in the loop that adds up."""
    source = assembly(convolution(256, 128), target_of(text))
    # with AVX2's 16 registers a tile's input is copied, into memory of the pool
    assert ("TVMBackendAllocWorkspace" in source) == ("haswell" in text)
    is_arm = text.startswith("aarch64")
    multiply, store = (r"\bfmla\b", r"\bst[rp]\b") if is_arm else (r"\bvfmadd", r"vmov[au]ps\s+%[xyz]mm\d+, .*\(")
    # pieces without a label or a jump inside; the loop is the one that asks for weights
    pieces = re.split(r"^\.L\w+:|^\s(?:j[a-z]+|b\.\w+)\s.*$", source, flags=re.MULTILINE)
    (loop,) = (piece for piece in pieces if re.search(PREFETCHES[text], piece))
    assert len(re.findall(multiply, loop)) >= 8
    assert not re.search(store, loop)


@pytest.mark.parametrize(
    ("text", "maximum", "comparison"),
    [
        ("x86_64-linux-gnu -mcpu=znver4", r"\bvmaxps\b", r"\bv(cmp\w*|blendv?)ps\b"),
        ("x86_64-linux-gnu -mcpu=haswell", r"\bvmaxps\b", r"\bv(cmp\w*|blendv?)ps\b"),
        ("aarch64-linux-gnu -mattr=+neon", r"\bfmax\b", r"\b(fcm\w+|bi[ft]|bsl|fmaxnm)\b"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_relu_is_one_instruction(text, maximum, comparison, dtype):
    """Also where it keeps NaN; a maximum of two unknown values is more, on x86."""
    target = target_of(text)
    if dtype == "bfloat16" and not has_dot_bf16(target):
        pytest.skip("scheduled with AVX512_BF16 only")
    source = assembly(convolution(256, 128, residual=True, dtype=dtype), target)
    assert re.search(maximum, source) and not re.search(comparison, source)
    x = te.placeholder((64, 64), "float32", "x")
    pooled = te.create_prim_func([x, topi.max(x, axis=0)]).with_attr("global_symbol", "main")
    source = str(lowering.build(default_schedule(pooled, target)[0].mod, target).mod.inspect_source("asm"))
    assert re.search(maximum, source) and bool(re.search(comparison, source)) == text.startswith("x86")


def test_large_local_arrays_are_not_on_the_stack():
    """Which a thread of the pool has little of."""

    def program(size: int) -> tirx.PrimFunc:
        @T.prim_func(s_tir=True)
        def main(a: T.Buffer((size,), "float32"), b: T.Buffer((size,), "float32")) -> None:
            with T.sblock("root"):
                local = T.sblock_alloc_buffer((size,), "float32", scope="local")
                for i in range(size):
                    with T.sblock("copy"):
                        v = T.axis.spatial(size, i)
                        local[v] = a[v] * a[v]
                for i in range(size):
                    with T.sblock("reverse"):
                        v = T.axis.spatial(size, i)
                        b[v] = local[size - 1 - v]

        return main.with_attr("global_symbol", "main")

    for size, pooled in ((1024, False), (4096, True)):
        library = lowering.build(program(size), resolve_target("llvm"))
        assert ("TVMBackendAllocWorkspace" in library.mod.inspect_source()) == pooled
        a = np.random.default_rng(0).standard_normal(size).astype("float32")
        b = tvm.runtime.empty((size,), "float32")
        library["main"](tvm.runtime.tensor(a), b)
        np.testing.assert_array_equal(b.numpy(), (a * a)[::-1])


def test_bfloat16_is_rounded_by_the_instruction():
    """To nearest even, infinities and NaN kept, as ml_dtypes does."""
    target = resolve_target("llvm")
    if not has_dot_bf16(target):
        pytest.skip("this CPU has no AVX512_BF16")
    a = te.placeholder((4, 64), "float32")
    func = te.create_prim_func([a, topi.cast(a, "bfloat16")]).with_attr("global_symbol", "main")
    library = lowering.build(default_schedule(func, target)[0].mod, target)
    assert "vcvtneps2bf16" in library.mod.inspect_source("asm")
    bits = np.random.default_rng(0).integers(0, 2**32, (4, 64), np.uint32)
    bits[0] = 0x3F808000 + (np.arange(64, dtype=np.uint32) << 16)  # halfway between two values
    bits[1, :3] = 0x7F800000, 0xFF800000, 0x7FC00000
    x = bits.view(np.float32)
    x[np.abs(x) < np.finfo(np.float32).tiny] = 0
    out = tvm.runtime.empty(x.shape, "bfloat16")
    library["main"](tvm.runtime.tensor(x), out)
    np.testing.assert_array_equal(*(array.astype("float32") for array in (out.numpy(), x.astype(ml_dtypes.bfloat16))))


@pytest.mark.parametrize(("inputs", "outputs"), [(300, 100), (1024, 40)])
@pytest.mark.parametrize("rows", [1, 5])
def test_prefetches_change_no_result(rng, rows, inputs, outputs):
    """Behind the last pack of weights there may be no memory."""
    x, weight = (rng.standard_normal(shape).astype("float32") for shape in ((rows, inputs), (outputs, inputs)))
    packed = pack_weight(weight[:, :, None, None], 16)
    a, b = te.placeholder(x.shape, "float32"), te.placeholder(packed.shape, "float32")
    func = te.create_prim_func([a, b, matmul_packed(a, b, outputs)]).with_attr("global_symbol", "main")
    target = resolve_target("llvm")
    library = lowering.build(default_schedule(func, target)[0].mod, target)
    out = tvm.runtime.empty((rows, outputs), "float32")
    library["main"](tvm.runtime.tensor(x), tvm.runtime.tensor(packed), out)
    assert relative_norm(out.numpy(), x.astype(np.float64) @ weight.T.astype(np.float64)) < 1e-5
