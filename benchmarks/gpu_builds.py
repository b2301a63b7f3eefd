# SPDX-License-Identifier: Apache-2.0
"""Build networks for NVIDIA's architectures and check every kernel, without a GPU: docs/gpu.md, "Architectures".

    python benchmarks/gpu_builds.py [NETWORK ...] [--architectures sm_80 sm_90a] [--dtype float16] [--batch 1 32 128]

Needs nvcc. Ends with status 1 where a kernel spills, has no launch bound or does not fit a multiprocessor. CPU seconds
are those of this process and nvcc, from the exported network to machine code.
"""

from __future__ import annotations

import argparse
import os
import sys

import tvm
from markdown_rows import print_header, print_row

from tvm_involution import lowering
from tvm_involution.bench.machine_code import KernelCode, compile_kernels, cuda_sources
from tvm_involution.compute_capability import BLOCK_THREADS, STATIC_SHARED_BYTES
from tvm_involution.frontend.importer import import_exported_program
from tvm_involution.frontend.network import resolve_network
from tvm_involution.relax import pipeline
from tvm_involution.target import resolve_target

ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120"]
COLUMNS = ["network", "architecture", "type", "batch", "kernels", "on tensor cores", "spill", "most registers"]
COLUMNS += ["most shared, KiB", "fewest resident threads", "CPU s"]


def main() -> int:
    """Print a row a build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["rednet50"])
    parser.add_argument("--architectures", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", default=["float16"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    print_header(COLUMNS)
    wrong: list[str] = []
    for name in arguments.networks:
        for batch in arguments.batch:
            imported = import_exported_program(resolve_network(name).export(batch))
            for dtype in arguments.dtype:
                for architecture in arguments.architectures:
                    start = cpu_seconds()
                    code = build(imported, architecture, dtype)
                    cells = [name, architecture, dtype, batch, *summary(code, architecture)]
                    print_row([*cells, f"{cpu_seconds() - start:.0f}"])
                    wrong += [f"{cells[:4]} {kernel} {found}" for kernel, found in code.items() if not fits(found)]
    print(*wrong, sep="\n", file=sys.stderr)
    return int(bool(wrong))


def build(imported: tvm.IRModule, architecture: str, dtype: str) -> dict[str, KernelCode]:
    """Return the machine code of a network's kernels by name."""
    target = resolve_target(f'{{"kind": "cuda", "arch": "{architecture}"}}')
    executable = lowering.build(pipeline.run(imported, target, dtype=dtype, cuda_graph=True), target)
    return compile_kernels("\n".join(cuda_sources(executable.mod)), architecture)


def summary(code: dict[str, KernelCode], architecture: str) -> list[object]:
    """Return the cells from the number of kernels on."""
    found = code.values()
    return [
        len(code),
        sum(kernel.tensor_core_products > 0 for kernel in found),
        sum(kernel.spilled_bytes + kernel.stack_bytes > 0 for kernel in found),
        max(kernel.registers for kernel in found),
        f"{max(kernel.shared_bytes for kernel in found) / 1024:.1f}",
        min(kernel.resident_threads(architecture) for kernel in found),
    ]


def fits(kernel: KernelCode) -> bool:
    """Return whether a kernel runs as it is meant to."""
    bounded = 0 < kernel.threads <= BLOCK_THREADS and kernel.shared_bytes <= STATIC_SHARED_BYTES
    return bounded and kernel.spilled_bytes + kernel.stack_bytes == 0


def cpu_seconds() -> float:
    """Return what this process and those that it waited for have computed."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    sys.exit(main())
