# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of generated CUDA C: registers, shared memory, spills, instructions.

Needs nvcc, and cuobjdump for the instructions; no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass

import tvm

from ..compute_capability import multiprocessor
from ..lowering.cuda_code import CudaCode, compile_by_nvcc, find_nvcc, sections
from .sass import Walk, parse, walk


@dataclass(frozen=True)
class KernelCode:
    """A kernel as it was compiled."""

    registers: int
    """of a thread"""
    shared_bytes: int
    """of a block, declared statically"""
    stack_bytes: int
    spilled_bytes: int
    threads: int
    """of a block at most (its launch bound), 0 where it has none"""
    tensor_core_products: int
    """`mma.sync` in its PTX"""
    instructions: Counter[str]
    """by name without suffixes; none without cuobjdump"""
    walk: Walk
    """of one warp through all of it; empty without cuobjdump"""

    def resident_threads(self, architecture: str) -> int:
        """Return how many threads a multiprocessor runs at a time."""
        blocks = multiprocessor(architecture).resident_blocks(self.threads, self.registers, self.shared_bytes)
        return blocks * self.threads


def nvcc_present() -> bool:
    """Return whether CUDA C can be compiled here."""
    return find_nvcc() is not None


def compile_kernel(source: str, architecture: str, cuobjdump: str = "cuobjdump") -> KernelCode:
    """Compile a source with one kernel for `architecture`, such as `sm_90a`.

    Raises:
        RuntimeError: nvcc's message.
    """
    (code,) = compile_kernels(source, architecture, cuobjdump).values()
    return code


def compile_kernels(source: str, architecture: str, cuobjdump: str = "cuobjdump") -> dict[str, KernelCode]:
    """Compile a source, all its kernels at once, for `architecture`; return their code by name.

    Raises:
        RuntimeError: nvcc's message, or there is none.
    """
    return read_kernels(compile_by_nvcc(source, architecture), cuobjdump)


def read_kernels(code: CudaCode, cuobjdump: str = "cuobjdump") -> dict[str, KernelCode]:
    """Return what nvcc made of each kernel, by name."""
    entries = sections(code.ptx, r"\.entry (\w+)\(")
    sass = {}
    if shutil.which(cuobjdump):
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(code.cubin)
            file.flush()
            dump = subprocess.run([cuobjdump, "-sass", file.name], capture_output=True, text=True, check=True)
        sass = sections(dump.stdout, r"Function : (\w+)")
    return {name: _kernel_code(report, entries[name], sass.get(name, "")) for name, report in code.reports.items()}


def _kernel_code(report: str, ptx: str, sass: str) -> KernelCode:
    def used(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, report)))

    bound = re.search(r"\.maxntid (\d+)", ptx.split("{", 1)[0])
    code = parse(sass)
    return KernelCode(
        registers=used(r"Used (\d+) registers"),
        shared_bytes=used(r"(\d+) bytes smem"),
        stack_bytes=used(r"(\d+) bytes stack frame"),
        spilled_bytes=used(r"(\d+) bytes spill"),
        threads=int(bound.group(1)) if bound else 0,
        tensor_core_products=len(re.findall(r"\bmma\.sync\.", ptx)),
        instructions=Counter(instruction.name for instruction in code),
        walk=walk(code),
    )


def cuda_sources(module: tvm.runtime.Module) -> list[str]:
    """Return the CUDA C of a module and those that it imports."""
    own = [module.inspect_source()] if module.kind == "cuda" else []
    return own + [source for imported in module.imports for source in cuda_sources(imported)]
