# SPDX-License-Identifier: Apache-2.0
"""Convolutions, linear layers and reductions on GPUs: what the generated CUDA C computes, and what nvcc makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cuda_emulator
import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from cuda_emulator import build_cuda, run_cuda
from programs import TOLERANCE, as_dtype, random_point
from reference import relative_norm
from tvm import relax, te, tirx, topi

import tvm_involution as ti
from tvm_involution.bench.machine_code import compile_kernel, nvcc_present
from tvm_involution.frontend.importer import import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.relax.passes.pack_weights import PackWeights
from tvm_involution.schedules import default_schedule, gpu, rules_for
from tvm_involution.schedules.gpu import mma_fragments
from tvm_involution.schedules.gpu.cuda_core_gemm import pack_lanes
from tvm_involution.schedules.gpu.tensor_core_gemm import pack_tiles
from tvm_involution.target import lowering_config, resolve_target
from tvm_involution.te import (
    conv2d_gemm,
    conv2d_mma,
    conv2d_windows,
    matmul_packed,
    matrix_windows,
    pack_weight,
    pack_weight_gemm,
    pack_weight_mma,
)

needs_emulator = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
needs_nvcc = pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
TARGETS = {
    arch: tvm.target.Target(
        {
            "kind": "cuda",
            "arch": arch,
            "max_shared_memory_per_block": 49152,
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "thread_warp_size": 32,
        },
        host="llvm",
    )
    for arch in ("sm_75", "sm_80", "sm_90a")
}
TF32 = 2e-3  # tf32 keeps 10 bits; a product of two truncated numbers is off by less than 2^-9


@dataclass(frozen=True)
class Convolution:
    """(N, H, W, I) -> O channels."""

    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0


CASES = [
    Convolution((1, 7, 7, 96), 40),
    Convolution((2, 9, 9, 64), 128, stride=2),
    Convolution((5, 5, 3, 33), 50),
    Convolution((1, 13, 11, 3), 32, 3, 2, 1),
    Convolution((1, 6, 10, 24), 21, 3, 1, 1),
    Convolution((1, 1, 1, 160), 36),
    Convolution((2, 20, 30, 16), 196),
    # warps share its sum, in tiles that are no multiple of them
    Convolution((1, 7, 7, 512), 128),
]


def program(case: Convolution, dtype: str, target: tvm.target.Target, tf32: bool, epilogue: bool = True):
    """Return the tensor program, a function that packs (O, I, KH, KW), and whether it is for tensor cores."""
    fragments = mma_fragments(target, dtype, tf32)
    x = te.placeholder(case.shape, dtype, "x")
    windows = conv2d_windows(x, (case.kernel,) * 2, (case.stride,) * 2, (case.padding,) * 4)

    def pack(weight: np.ndarray) -> np.ndarray:
        if fragments is not None:
            return pack_weight_mma(weight, fragments, pack_tiles(windows.pixels, case.out))
        return pack_weight_gemm(weight, pack_lanes(case.out))

    w = te.placeholder(pack(np.zeros((case.out, case.shape[3], case.kernel, case.kernel))).shape, dtype, "w")
    y = conv2d_mma(windows, w, case.out, fragments, dtype) if fragments else conv2d_gemm(windows, w, case.out, dtype)
    if not epilogue:
        return te.create_prim_func([x, w, y]), pack, fragments is not None
    bias, residual = te.placeholder((1, 1, 1, case.out), dtype, "bias"), te.placeholder(y.shape, dtype, "residual")
    z = topi.nn.relu(topi.add(topi.add(y, bias), residual))
    return te.create_prim_func([x, w, bias, residual, z]), pack, fragments is not None


def arrays_and_result(rng, case: Convolution, dtype: str, pack, epilogue: bool = True):
    x = as_dtype(rng.standard_normal(case.shape), dtype)
    weight = as_dtype(rng.standard_normal((case.out, case.shape[3], case.kernel, case.kernel)), dtype)
    exact = [torch.from_numpy(array.astype(np.float64)) for array in (x, weight)]
    expected = torch.nn.functional.conv2d(exact[0].permute(0, 3, 1, 2), exact[1], None, case.stride, case.padding)
    expected = expected.permute(0, 2, 3, 1).numpy()
    if not epilogue:
        return [x, pack(weight)], expected
    bias = as_dtype(rng.standard_normal((1, 1, 1, case.out)), dtype)
    residual = as_dtype(rng.standard_normal(expected.shape), dtype)
    expected = np.maximum(expected + bias.astype(np.float64) + residual.astype(np.float64), 0)
    return [x, pack(weight), bias, residual], expected


@needs_emulator
@pytest.mark.parametrize(
    ("dtype", "arch"), [("float16", "sm_75"), ("float16", "sm_80"), ("bfloat16", "sm_90a"), ("tf32", "sm_80")]
)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensor_cores(rng, case, dtype, arch):
    target, tf32 = TARGETS[arch], dtype == "tf32"
    dtype = "float32" if tf32 else dtype
    func, pack, on_tensor_cores = program(case, dtype, target, tf32)
    assert on_tensor_cores
    arrays, expected = arrays_and_result(rng, case, dtype, pack)
    sch, rule = default_schedule(func, target)
    assert rule == "TensorCoreGemm"
    built = build_cuda(sch, target)
    assert "mma.sync" in built.source
    (actual,) = run_cuda(built, arrays, target)
    assert relative_norm(actual, expected) < (TF32 if tf32 else TOLERANCE[dtype])


@needs_emulator
@pytest.mark.parametrize("arch", ["sm_75", "sm_80"])
@pytest.mark.parametrize("case", [case for case in CASES if math.prod(case.shape[:3]) > 1], ids=str)
def test_cuda_cores(rng, case, arch):
    target = TARGETS[arch]
    func, pack, _ = program(case, "float32", target, tf32=False)
    arrays, expected = arrays_and_result(rng, case, "float32", pack)
    sch, rule = default_schedule(func, target)
    assert rule == "CudaCoreGemm"
    (actual,) = run_cuda(sch, arrays, target)
    assert relative_norm(actual, expected) < 1e-5


@needs_emulator
@pytest.mark.parametrize(("dtype", "arch"), [("float16", "sm_80"), ("bfloat16", "sm_80"), ("float32", "sm_75")])
@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_random_points_of_the_space(rng, case, dtype, arch):
    target = TARGETS[arch]
    func, pack, _ = program(case, dtype, target, tf32=False)
    arrays, expected = arrays_and_result(rng, case, dtype, pack)
    spaces = next(s for s in (rule.apply(func, target, True) for rule in rules_for(target)) if s is not None)
    assert len(spaces) > 3
    default, _ = default_schedule(func, target)
    assert tvm_ffi.structural_equal(spaces[0].mod, default.mod)
    for index in rng.choice(len(spaces), 3, replace=False):
        point = random_point(rng, func, [spaces[index]])
        (actual,) = run_cuda(point, arrays, target)
        assert relative_norm(actual, expected) < TOLERANCE[dtype]


@needs_emulator
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 500, 30), (3, 100, 27)])
def test_linear(rng, dtype, rows, inputs, outputs):
    target = TARGETS["sm_80"]
    x = as_dtype(rng.standard_normal((rows, inputs)), dtype)
    weight = as_dtype(rng.standard_normal((outputs, inputs)), dtype)
    a = te.placeholder(x.shape, dtype, "x")
    fragments = mma_fragments(target, dtype)
    if fragments is not None:
        packed = pack_weight_mma(weight[:, :, None, None], fragments, 1)
        w = te.placeholder(packed.shape, dtype, "w")
        y = conv2d_mma(matrix_windows(a), w, outputs, fragments, dtype)
    elif rows > 1:
        packed = pack_weight_gemm(weight[:, :, None, None], 16)
        w = te.placeholder(packed.shape, dtype, "w")
        y = conv2d_gemm(matrix_windows(a), w, outputs, dtype)
    else:
        packed = pack_weight(weight[:, :, None, None], 16)
        w = te.placeholder(packed.shape, dtype, "w")
        y = matmul_packed(a, w, outputs)
    sch, rule = default_schedule(te.create_prim_func([a, w, y]), target)
    assert rule == ("TensorCoreGemm" if fragments else "CudaCoreGemm" if rows > 1 else "Reduction")
    (actual,) = run_cuda(sch, [x, packed], target)
    assert relative_norm(actual, x.astype(np.float64) @ weight.T.astype(np.float64)) < TOLERANCE[dtype]


def reduction(name: str, dtype: str) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    # short rows have fewer numbers than a block that shares a sum has threads
    shape = {"average": (2, 7, 7, 48), "rows": (3, 5, 130), "short rows": (3, 5, 49), "softmax": (3, 77)}[name]
    x = te.placeholder(shape, dtype, "x")
    if name == "softmax":
        return te.create_prim_func([x, topi.nn.softmax(x)]), shape
    if "rows" in name:
        k = te.reduce_axis((0, shape[2]), "k")
        return te.create_prim_func([x, te.compute(shape[:2], lambda i, j: te.sum(x[i, j, k], axis=k))]), shape
    total = topi.sum(x, axis=(1, 2))
    return te.create_prim_func([x, topi.divide(total, tirx.const(49, dtype))]), shape


@needs_emulator
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("average", "float16"),
        ("average", "float32"),
        ("rows", "float32"),
        ("short rows", "float32"),
        ("softmax", "float32"),
    ],
)
def test_reductions(rng, name, dtype):
    func, shape = reduction(name, dtype)
    x = as_dtype(rng.standard_normal(shape) + 1, dtype)
    exact = torch.from_numpy(x.astype(np.float64))
    expected = {
        "average": lambda: exact.mean((1, 2)),
        "rows": lambda: exact.sum(2),
        "short rows": lambda: exact.sum(2),
        "softmax": lambda: exact.softmax(1),
    }
    target = TARGETS["sm_80"]
    for sch in [gpu.Reduction().apply(func, target), *(gpu.Reduction().apply(func, target, tunable=True) or [])]:
        (actual,) = run_cuda(sch, [x], target)
        assert relative_norm(actual, expected[name]().numpy()) < TOLERANCE[dtype]


def build(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target) -> str:
    with tvm.transform.PassContext(config=lowering_config(target)):
        library = tvm.compile(tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()}), target)
    return "\n".join(module.inspect_source() for module in library.mod.imports)


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("arch", list(TARGETS))
def test_registers_and_instructions(arch, dtype):
    """A large tile: no spills, nothing on the stack, the instructions that are meant."""
    target = TARGETS[arch]
    func, _, _ = program(Convolution((32, 14, 14, 256), 256), dtype, target, tf32=False)
    sch, _ = default_schedule(func, target)
    source = build({"main": sch.mod["main"]}, target)
    assert ("cp.async" in source) == (arch != "sm_75")
    code = compile_kernel(source, arch)
    assert (code.stack_bytes, code.spilled_bytes) == (0, 0)
    assert code.resident_threads(arch) >= code.threads
    if code.instructions:  # cuobjdump is there
        used = code.instructions["HMMA" if dtype == "float16" else "FFMA"]
        assert used >= 64


@needs_nvcc
@pytest.mark.parametrize("name", ["rednet26", "rednet50"])
def test_every_kernel_of_a_network(name):
    """Each kernel gets a rule, each product tensor cores; and RedNet-26 builds whole."""
    target = resolve_target("nvidia/nvidia-h100")
    network = resolve_network(name)
    mod = import_exported_program(network.export(1))
    mod = pipeline.run(mod, target, dtype="float16", until="lower operators")
    functions = {}
    for var, func in mod.functions_items():
        if not isinstance(func, tirx.PrimFunc):
            continue
        sch, rule = default_schedule(func, target)
        assert rule not in ("", "DlightFallback"), var.name_hint
        if "conv2d" in var.name_hint or "linear" in var.name_hint:
            assert rule == "TensorCoreGemm", var.name_hint
            functions[var.name_hint] = sch.mod["main"]
    assert len(functions) >= 20
    if name == "rednet26":
        build(functions, target)


def test_tf32_only_where_asked_for():
    """The default keeps float32; a linear layer's program tells which."""
    target = TARGETS["sm_80"]
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 1)).eval()
    exported = torch.export.export(module, (torch.randn(1, 8, 4, 4),))
    mod = relax.transform.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OIHW"]})(
        relax.transform.Normalize()(import_exported_program(exported))
    )
    mod = relax.transform.FoldConstant()(mod)
    assert "mma" not in PackWeights(target)(mod).script()
    assert "mma" in PackWeights(target, tf32=True)(mod).script()
    assert "mma" not in PackWeights(TARGETS["sm_75"], tf32=True)(mod).script()


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
def test_compiled_library_uses_tensor_cores(tmp_path):
    module = torch.nn.Conv2d(16, 32, 1).eval()
    library = ti.compile(module, "nvidia/nvidia-a100", image_size=(8, 8), dtype="float16")
    library.save(tmp_path / "net.so")
    assert library.metadata.kernels.rule == library.metadata.kernels.total
