# SPDX-License-Identifier: Apache-2.0
"""Targets by name: this machine's CPU or GPU, TVM's tags, or a target's JSON."""

from __future__ import annotations

import difflib
import json
import platform

import tvm

from .compute_capability import BLOCK_THREADS, REGISTERS, STATIC_SHARED_BYTES, WARP_THREADS, capability_of
from .cpu_features import beside_the_name, corrections, has_feature
from .cpu_target import check_cpu, with_defaults
from .errors import UserError
from .quiet import quiet_stderr
from .runtime.threads import physical_cores
from .runtime.tvm_runtime import CudaMissing, load_cuda_runtime

CACHE_BYTES = 4 << 20
"""of the second-level caches of some cores"""
# Turing, the first with tensor cores that `mma` reaches, and the oldest that CUDA 13 compiles for
_OLDEST_GPU = 75


def resolve_target(text: str) -> tvm.target.Target:
    """Return the TVM target, with its host, of `llvm`, `cuda`, a tag such as `nvidia/nvidia-h100`, or JSON.

    `llvm` is this machine's CPU with its features and physical cores; `cuda` is this machine's first GPU.

    Raises:
        UserError: unknown target (with close tags), a CPU that LLVM does not know or that nothing can be linked for, a
            GPU that is too old, or `cuda` without a GPU.
    """
    text = text.strip()
    if text == "llvm":
        return tvm.target.Target(host_cpu())
    if text == "cuda":
        return _local_gpu()
    try:
        spec = json.loads(text) if text.startswith("{") else text
        with quiet_stderr():
            target = tvm.target.Target(with_defaults(_with_limits(spec)) if isinstance(spec, dict) else spec)
    except Exception as error:  # TVM raises several kinds, with a stack of C++ frames in the message
        tags = [*tvm.target.list_tags(), *tvm.target.Target.list_kinds()]
        near = difflib.get_close_matches(text, tags, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else "see `tvm-involution targets`"
        if text.startswith("{"):
            hint = f"{str(error).strip().splitlines()[-1]:.300}"
        raise UserError(f"unknown target {text[:200]!r}: expected llvm, cuda, a TVM tag or JSON; {hint}") from error
    if target.kind.name not in ("llvm", "cuda"):
        raise UserError(f"target kind {target.kind.name!r} is not supported; expected llvm or cuda")
    if target.kind.name == "cuda" and compute_capability(target) < _OLDEST_GPU:
        raise UserError(
            f"GPUs of {target.attrs['arch']} are not supported; expected sm_{_OLDEST_GPU} or newer, such as "
            """--target '{"kind": "cuda", "arch": "sm_86"}'"""
        )
    if target.kind.name == "cuda" and target.host is None:
        target = tvm.target.Target(target, host=tvm.target.Target(_portable_host()))
    host = target.host if target.host is not None else target
    if host.kind.name != "llvm":
        raise UserError(f"the target's host is of kind {host.kind.name!r}; expected llvm")
    check_cpu(host)
    return target


def as_target(target: str | tvm.target.Target) -> tvm.target.Target:
    """Return a target as it is, and that of a text as `resolve_target` does.

    Raises:
        UserError: see there.
    """
    return target if isinstance(target, tvm.target.Target) else resolve_target(target)


def host_cpu() -> dict[str, object]:
    """Return this machine's CPU as a TVM target spec: LLVM's CPU name, what it has beside it, the physical cores."""
    spec = {
        "kind": "llvm",
        "mtriple": tvm.target.codegen.llvm_get_system_triple(),
        "mcpu": tvm.target.codegen.llvm_get_system_cpu(),
        "num-cores": physical_cores(),
    }
    mattr = corrections(spec)
    return {**spec, "mattr": mattr} if mattr else spec


def reference_cpu() -> tvm.target.Target:
    """Return this CPU as a target for programs without a schedule, whose results others are compared with.

    They are not optimized as what they judge: at level 3, the default, LLVM 22 computes some sums of selected values
    wrongly for `znver4` (`te.conv2d_strassen` as it is written).
    """
    return tvm.target.Target({**host_cpu(), "opt-level": 1})


def core_count(target: tvm.target.Target) -> int:
    """Return the cores of a CPU that the target names, 1 where it does not."""
    return int(target.attrs.get("num-cores") or 1)


def target_key(target: tvm.target.Target) -> str:
    """Return the name of the target's folder in tuning_logs/.

    LLVM's CPU name, with the features that change what it has (`rocketlake+avx512bf16`), or the GPU's architecture.
    """
    attrs = target.attrs
    if target.kind.name == "cuda":
        return str(attrs.get("arch", "cuda"))
    return "".join([str(attrs.get("mcpu") or "generic"), *beside_the_name(target)])


def vector_bytes(target: tvm.target.Target) -> int:
    """Return the width of the CPU's vector registers in bytes: 64 with AVX-512, 32 with AVX, else 16."""
    return next((width for feature, width in (("avx512f", 64), ("avx", 32)) if has_feature(target, feature)), 16)


def vector_registers(target: tvm.target.Target) -> int:
    """Return how many vector registers the CPU has: 32 with AVX-512 and on AArch64, else 16."""
    triple = str(target.attrs.get("mtriple") or platform.machine())
    return 32 if vector_bytes(target) == 64 or triple.startswith(("aarch64", "arm64")) else 16


def compute_capability(target: tvm.target.Target) -> int:
    """Return a GPU's compute capability, times ten: 90 for sm_90a."""
    return capability_of(str(target.attrs.get("arch", "")))


def lowering_config(target: tvm.target.Target) -> dict[str, bool]:
    """Return the options of the `PassContext` in which scheduled programs are built for `target`.

    Copies that a GPU schedule marks as asynchronous become `cp.async`. Common subexpressions are left to nvcc: TVM's
    own elimination hides the lane from LowerWarpMemory (TVM 0.27).
    """
    return {"tirx.use_async_copy": True, "tirx.disable_cse_tir": True} if target.kind.name == "cuda" else {}


def _local_gpu() -> tvm.target.Target:
    if problem := gpu_problem():
        raise UserError(
            f"{problem}; or name the card to build for, such as --target nvidia/nvidia-h100, or use --target llvm"
        )
    return tvm.target.Target(tvm.target.Target.from_device("cuda"), host=tvm.target.Target(host_cpu()))


def gpu_problem() -> str:
    """Return why this machine's first GPU cannot be used, and what to do; nothing where it can."""
    try:
        load_cuda_runtime()
        return "" if tvm.cuda(0).exist else "TVM finds no NVIDIA GPU on this machine; see `nvidia-smi -L`"
    except CudaMissing as error:
        return error.problem
    except Exception as error:  # TVM raises several kinds
        return f"TVM cannot use the NVIDIA GPU ({str(error).strip().splitlines()[-1]}); see `nvidia-smi`"


def gpu_name() -> str | None:
    """Return the name of this machine's first GPU, None where there is none that can be used."""
    return None if gpu_problem() else str(tvm.cuda(0).device_name)


def _with_limits(spec: dict[str, object]) -> dict[str, object]:
    """Return a CUDA target's JSON with the limits that TVM's tags have and its tuner asks for."""
    if spec.get("kind") != "cuda":
        return spec
    limits = {
        "max_shared_memory_per_block": STATIC_SHARED_BYTES,
        "max_threads_per_block": BLOCK_THREADS,
        "max_num_threads": BLOCK_THREADS,
        "registers_per_block": REGISTERS,
        "thread_warp_size": WARP_THREADS,
    }
    return {**limits, **spec}


def _portable_host() -> dict[str, object]:
    """Return a host for a GPU elsewhere: this architecture without this CPU's own features."""
    triple = tvm.target.codegen.llvm_get_system_triple()
    return {"kind": "llvm", "mtriple": triple, "mcpu": "x86-64-v2" if platform.machine() == "x86_64" else ""}
