# SPDX-License-Identifier: Apache-2.0
"""Every rule for GPUs and whole networks on every architecture: what NVIDIA's compiler makes of them, without a GPU."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cuda_emulator
import pytest
import tvm
from conftest import tiny_rednet
from gpu_kernels import gpu_programs
from tvm import tirx

import tvm_involution as ti
from tvm_involution import lowering
from tvm_involution.bench.machine_code import KernelCode, compile_kernels, nvcc_present, read_kernels
from tvm_involution.compute_capability import REGISTERS, THREAD_REGISTERS, multiprocessor, runs_on
from tvm_involution.lowering import cuda_code
from tvm_involution.lowering.pack_imports import packed_cuda_modules
from tvm_involution.relax.passes import apply_schedules
from tvm_involution.relax.passes.apply_schedules import RULE_ATTR
from tvm_involution.schedules import GPU_RULES, default_schedule, gpu
from tvm_involution.schedules.gpu import tensor_core_gemm
from tvm_involution.schedules.gpu.limits import max_threads, shared_bytes
from tvm_involution.schedules.rule import find_block
from tvm_involution.target import resolve_target

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
needs_nvcc = pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")


def target_of(architecture: str) -> tvm.target.Target:
    """Skip where the nvcc at hand does not take the architecture."""
    try:
        cuda_code.check_cuda_compiler(architecture)
    except ti.UserError as error:
        pytest.skip(str(error))
    return resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')


def check_code(code: KernelCode, target: tvm.target.Target, tensor_cores: bool | None = None) -> None:
    """Check that nothing spills, that the target's limits are kept, and where tensor cores are used."""
    assert (code.spilled_bytes, code.stack_bytes) == (0, 0)
    assert 0 < code.threads <= max_threads(target)
    assert code.registers <= THREAD_REGISTERS and code.registers * code.threads <= REGISTERS
    assert code.shared_bytes <= shared_bytes(target)
    architecture = multiprocessor(str(target.attrs["arch"]))
    assert architecture.resident_blocks(code.threads, code.registers, code.shared_bytes) >= 1
    if tensor_cores is not None:
        assert (code.tensor_core_products > 0) == tensor_cores
    if code.instructions:  # cuobjdump is there
        assert (code.instructions["HMMA"] > 0) == (code.tensor_core_products > 0)


# between these nothing is decided that the rules look at; whole networks are built for all
EDGES = ("sm_75", "sm_80", "sm_90a", "sm_120")


@needs_nvcc
@pytest.mark.parametrize(
    "architecture",
    [a if a in EDGES else pytest.param(a, marks=pytest.mark.every_kernel) for a in ARCHITECTURES],
)
def test_every_rule(architecture):
    target = target_of(architecture)
    programs = {program.name: program for program in gpu_programs(target)}
    functions, rules = {}, set()
    for name, program in programs.items():
        schedule, rule = default_schedule(program.func, target)
        assert rule == program.rule, name
        rules.add(rule)
        (func,) = schedule.mod.functions.values()
        functions[name] = func.with_attr("global_symbol", name)
    # what no rule takes; there is no such program
    rules.add("DlightFallback")
    average = programs["average_float32"].func
    (func,) = gpu.DlightFallback().apply(average, target).mod.functions.values()
    functions["fallback"] = func.with_attr("global_symbol", "fallback")
    assert rules == {rule.name for rule in GPU_RULES}

    code = compile_kernels(cuda_source(functions, target), architecture)
    for name in functions:
        kernels = {kernel: found for kernel, found in code.items() if kernel.startswith(f"{name}_kernel")}
        assert kernels, name
        for kernel, found in kernels.items():
            print(kernel, found)
            check_code(found, target, name in programs and programs[name].tensor_cores)
    # half types have tensor cores everywhere but bfloat16 before sm_80
    on_tensor_cores = {name for name, program in programs.items() if program.tensor_cores}
    dtypes = {name.rpartition("_")[2] for name in on_tensor_cores}
    assert dtypes == ({"float16"} if architecture == "sm_75" else {"float32", "float16", "bfloat16"})


def cuda_source(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target) -> str:
    """Return the CUDA C of scheduled programs, all in one module."""
    library = lowering.build(tvm.IRModule(functions), target)
    return "\n".join(module.inspect_source() for module in library.mod.imports)


@needs_nvcc
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_whole_network(tmp_path, rng, monkeypatch, architecture):
    """A library for the architecture holds machine code, which keeps its limits."""
    target, dtype = target_of(architecture), str(rng.choice(["float32", "float16"]))
    print(dtype)
    compiled = []

    def compile_cuda(source: str, wanted: str) -> bytes:
        assert wanted == architecture
        compiled.append(cuda_code.compile_by_nvcc(source, wanted))
        return compiled[-1].cubin

    rules = {}

    def count_kernels(mod: tvm.IRModule):
        functions = mod.functions_items()
        rules.update({f.name_hint: func.attrs[RULE_ATTR] for f, func in functions if RULE_ATTR in (func.attrs or {})})
        return apply_schedules.count_kernels(mod)

    monkeypatch.setattr("tvm_involution.lowering.link.compile_cuda", compile_cuda)
    monkeypatch.setattr("tvm_involution.compiler.count_kernels", count_kernels)
    library = ti.compile(tiny_rednet(), target, image_size=(32, 32), batch=2, dtype=dtype)
    library.save(tmp_path / "net.so")
    assert library.metadata.kernels.rule == library.metadata.kernels.total > 20
    (built,) = compiled
    for kernel, code in read_kernels(built).items():
        print(kernel, code)
        name = kernel.rpartition("_kernel")[0]
        on_tensor_cores = rules[name] in ("TensorCoreGemm", "TensorCoreInvolution")
        check_code(code, target, on_tensor_cores)
        if "conv2d" in name or "linear" in name:
            assert on_tensor_cores == (dtype == "float16"), name
    ((form, code),) = embedded_cuda(tmp_path / "net.so")
    assert form == "cubin" and code == built.cubin


def embedded_cuda(path: Path) -> list[tuple[str, bytes]]:
    """Return the CUDA modules that a library embeds."""
    start = ctypes.addressof(ctypes.c_char.in_dll(ctypes.CDLL(str(path)), "__tvm_ffi__library_bin"))
    size = ctypes.c_uint64.from_address(start).value
    return packed_cuda_modules(ctypes.string_at(start, 8 + size))


# as much of a driver as is asked for until a library is loaded: there is a GPU, and each further call fails
DRIVER = """
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
#define FAILS(name) int name() { return 100; }
FAILS(cuDeviceGetName) FAILS(cuFuncSetAttribute) FAILS(cuGetErrorName) FAILS(cuGetErrorString) FAILS(cuLaunchKernelEx)
FAILS(cuModuleGetFunction) FAILS(cuModuleLoadData) FAILS(cuModuleUnload) FAILS(cuTensorMapEncodeTiled)
"""


@needs_nvcc
@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU, and so a driver")
@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
def test_loading_needs_no_compiler(tmp_path):
    """A process that knows nothing of TVM's compiler takes the kernels of a library from it."""
    nvcc = Path(cuda_code.find_nvcc()).resolve()
    (tmp_path / "driver.c").write_text(DRIVER)
    driver = tmp_path / "libcuda.so.1"
    subprocess.run(["g++", "-xc", "-shared", "-fPIC", tmp_path / "driver.c", "-o", driver], check=True)
    ti.compile(torch_network(), "nvidia/nvidia-a100", image_size=(8, 8)).save(tmp_path / "net.so")
    script = f"""
        import ctypes, sys
        ctypes.CDLL({str(driver)!r}, ctypes.RTLD_GLOBAL)
        import tvm_involution
        from tvm_involution.runtime.ffi import tvm_ffi
        from tvm_involution.runtime import tvm_runtime
        try:
            tvm_runtime.load_cuda_runtime()
        except tvm_involution.UserError as error:
            sys.exit(f"no CUDA runtime: {{error}}")
        library = tvm_ffi.load_module({str(tmp_path / "net.so")!r})
        assert library.get_function("vm_load_executable")() is not None
        assert "tvm" not in sys.modules
    """
    folders = [str(tmp_path), *(str(nvcc.parents[1] / name) for name in ("lib", "lib64")), "/usr/local/cuda/lib64"]
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join([*folders, os.environ.get("LD_LIBRARY_PATH", "")])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    if "no CUDA runtime" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr


def torch_network():
    import torch

    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), torch.nn.ReLU()).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_limits_are_filled_in(architecture):
    """A target that names an architecture alone has what the tuner asks for, and what is given stays."""
    attrs = resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}').attrs
    tag = resolve_target("nvidia/nvidia-t4").attrs
    assert {name: tag[name] for name in tag if name != "arch"} == {
        name: attrs[name] for name in attrs if name != "arch"
    }
    own = resolve_target(f'{{"kind": "cuda", "arch": "{architecture}", "max_shared_memory_per_block": 16384}}')
    assert shared_bytes(own) == 16384 and own.attrs["registers_per_block"] == 65536


def test_small_limits_are_kept():
    """Schedules follow the target: with a third of the shared memory and a quarter of the threads all fit."""
    small = resolve_target(
        '{"kind": "cuda", "arch": "sm_80", "max_shared_memory_per_block": 16384, "max_threads_per_block": 64}'
    )
    used = set()
    for program in gpu_programs(small):
        schedule, rule = default_schedule(program.func, small)
        if rule in ("ThreadPerOutput", "Reduction", "NMS"):
            continue  # of a size of their own
        used.add(rule)
        shared, threads = block_needs(schedule, small)
        assert shared <= 16384 and threads <= 64, program.name
    tiled = {rule.name for rule in GPU_RULES} - {"ThreadPerOutput", "Reduction", "NMS", "DlightFallback"}
    assert used == tiled


@pytest.mark.parametrize("architecture", ["sm_75", "sm_80"])
def test_shared_memory_is_foreseen(rng, architecture):
    """Of tiles whose warps divide the sum, which share memory with the copies where they fit."""
    target = resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')
    for name in ("convolution_one_image_float16", "linear_float16"):
        func = next(program.func for program in gpu_programs(target) if program.name == name)
        schedule = tvm.s_tir.Schedule(func)
        problem = tensor_core_gemm._problem(schedule, find_block(schedule, "mma"))
        plans = [plan for plan in tensor_core_gemm._plans(problem, target) if plan.warps[2] > 1]
        for plan in [plans[i] for i in rng.choice(len(plans), 3)]:
            print(name, plan)
            shared, threads = block_needs(tensor_core_gemm._schedule(func, target, plan, False), target)
            own = tensor_core_gemm._shared_bytes(problem, plan)
            # at one pixel what nobody reads is not stored: never more than foreseen, and of all plans at least 0.77
            assert own == shared if problem.pixels > 1 else 0.75 * own <= shared <= own
            assert threads == plan.threads


def block_needs(schedule: tvm.s_tir.Schedule, target: tvm.target.Target) -> tuple[int, int]:
    """Return the bytes of shared memory that a lowered program declares, and the threads of its blocks."""
    source = cuda_emulator.build_cuda(schedule, target)
    sizes = {"half": 2, "nv_bfloat16": 2, "float": 4, "uint2": 8, "uint4": 16, "float4": 16, "half4": 8}
    shared = 0
    for line in source.source.splitlines():
        if "__shared__" in line:
            *_, kind, array = line.replace(";", "").split()
            shared += sizes[kind] * int(array.partition("[")[2].rstrip("]"))
    return shared, max(launch.threads for launch in source.launches)


def test_which_gpus_run_what():
    assert runs_on("sm_80", "8.0") and runs_on("sm_80", "8.6") and runs_on("sm_90", "9.0") and runs_on("sm_90a", "9.0")
    assert not runs_on("sm_86", "8.0") and not runs_on("sm_80", "9.0") and not runs_on("sm_100a", "10.3")
    assert runs_on("sm_100f", "10.3") and runs_on("sm_120", "12.1") and not runs_on("sm_75", "12.0")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nvidia/nvidia-v100", "GPUs of sm_70 are not supported; expected sm_75 or newer"),
        ('{"kind": "cuda"}', "are not supported; expected sm_75 or newer"),
        pytest.param('{"kind": "cuda", "arch": "sm_99"}', "cannot compile for sm_99; it knows", marks=needs_nvcc),
    ],
)
def test_architectures_that_cannot_be(spec, words):
    with pytest.raises(ti.UserError) as error:
        ti.compile(torch_network(), spec, image_size=(8, 8))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(cuda_code, "find_nvcc", lambda: None)
    monkeypatch.setattr(cuda_code, "_has_nvrtc", lambda: False)
    with pytest.raises(ti.UserError, match="put nvcc on PATH, or `pip install"):
        ti.compile(torch_network(), "nvidia/nvidia-a100", image_size=(8, 8))


@needs_nvcc
def test_a_kernel_that_spills_is_compiled_again():
    """Bounded to 64 registers by its 1024 threads it must spill, with any minimum of blocks; the bound is relaxed."""
    sums = "\n".join(f"  float s{i} = x[{i}];" for i in range(120))
    more = "\n".join(f"    s{i} = s{i} * x[k] + s{(i + 7) % 120};" for i in range(120))
    total = " + ".join(f"s{i}" for i in range(120))
    source = (
        'extern "C" __global__ void __launch_bounds__(1024) greedy(float* x, int n) {\n'
        f"{sums}\n  for (int k = 0; k < n; ++k) {{\n{more}\n  }}\n  x[threadIdx.x] = {total};\n}}\n"
    )
    code = cuda_code.compile_by_nvcc(source, "sm_80")
    assert ".minnctapersm 1" in code.ptx
    modest = source.replace("1024", "128")
    assert ".minnctapersm" not in cuda_code.compile_by_nvcc(modest, "sm_80").ptx
