# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of generated CUDA C: registers, shared memory, spills, the instructions of the loops.

Needs nvcc, and cuobjdump for the instructions; no GPU.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# registers, KiB of shared memory and threads of a multiprocessor by architecture, and what a block reserves of its own
# (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability")
_REGISTERS, _SHARED = 65536, {75: 64, 80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 120: 100}
_THREADS, _RESERVED = {75: 1024, 86: 1536, 89: 1536, 120: 1536}, 1024


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
    """of a block"""
    instructions: Counter[str]
    """by name without suffixes; none without cuobjdump"""
    loops: tuple[Counter[str], ...]
    """those between a branch backwards and its target"""

    def resident_threads(self, architecture: str) -> int:
        """Return how many threads a multiprocessor runs at a time."""
        number = int(re.sub(r"\D", "", architecture))
        warps = -(-self.threads // 32)
        blocks = min(
            _REGISTERS // (-(-self.registers // 8) * 8 * 32 * warps),
            (_SHARED[number] << 10) // (self.shared_bytes + _RESERVED),
            _THREADS.get(number, 2048) // (32 * warps),
        )
        return blocks * self.threads


def nvcc_present() -> bool:
    """Return whether CUDA C can be compiled here."""
    return shutil.which("nvcc") is not None


def compile_kernel(source: str, architecture: str, cuobjdump: str = "cuobjdump") -> KernelCode:
    """Compile a source with one kernel for `architecture`, such as `sm_90a`.

    Raises:
        RuntimeError: nvcc's message.
    """
    with tempfile.TemporaryDirectory() as folder:
        path, binary = Path(folder, "kernel.cu"), Path(folder, "kernel.cubin")
        path.write_text(source)
        command = ["nvcc", "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-o", str(binary), str(path)]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode:
            raise RuntimeError(compiled.stderr)
        code: list[tuple[int, str, str]] = []
        if shutil.which(cuobjdump):
            dump = subprocess.run([cuobjdump, "-sass", str(binary)], capture_output=True, text=True, check=True)
            code = _instructions(dump.stdout)

    def used(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, compiled.stderr)))

    return KernelCode(
        registers=used(r"Used (\d+) registers"),
        shared_bytes=used(r"(\d+) bytes smem"),
        stack_bytes=used(r"(\d+) bytes stack frame"),
        spilled_bytes=used(r"(\d+) bytes spill"),
        threads=int(re.findall(r"__launch_bounds__\((\d+)\)", source)[0]),
        instructions=Counter(name for _, name, _ in code),
        loops=_loops(code),
    )


def _instructions(text: str) -> list[tuple[int, str, str]]:
    """Return each instruction's address, name and operands."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]*)([^;]*);", text)
    return [(int(address, 16), name.split(".")[0], operands) for address, name, operands in found]


def _loops(code: list[tuple[int, str, str]]) -> tuple[Counter[str], ...]:
    loops = []
    for address, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if name == "BRA" and target and int(target.group(1), 16) < address:
            start = int(target.group(1), 16)
            loops.append(Counter(name for at, name, _ in code if start <= at <= address))
    return tuple(loops)
