# SPDX-License-Identifier: Apache-2.0
"""Run a CUDA program in the emulator and find accesses to memory that have no order on a GPU.

`race_detector.cpp` says how. Outputs are not looked at, so that inputs may be short patterns and blocks a sample.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
from cuda_emulator import HEADER, Array, CudaProgram, as_cpp, build_cuda, compile_cpp, numpy_dtype, run_binary
from tvm import s_tir, tirx

HARMLESS = frozenset({"same value", "same value by two blocks"})
"""kinds of findings: two threads write one value, and whoever is last, that is what is there"""
# of an input that is made here, repeated; a prime, so that rows differ
_PERIOD = 65521
_FIRST_ADDRESS = 0x400000  # where Linux puts code
_ONE_AT_A_TIME = threading.Lock()
_FLAGS = ["-DDETECT_RACES", "-fno-pie", "-g1", "-c"]


@dataclass(frozen=True)
class Finding:
    """Accesses of two lines of a program that conflict."""

    kind: str
    array: str
    bytes: int
    """how often, each byte counted"""
    lines: tuple[str, ...]
    """of CUDA C: of the access that was found, and where there is one, that before it"""
    example: str

    @property
    def harmless(self) -> bool:
        """Whether it cannot change what comes out."""
        return self.kind in HARMLESS

    def __str__(self) -> str:
        lines = " / ".join(self.lines)
        return f"{self.kind}: {self.bytes} bytes of {self.array} ({self.example}): {lines}"


def find_races(
    program: CudaProgram | tirx.PrimFunc | tvm.IRModule | s_tir.Schedule,
    target: tvm.target.Target,
    *,
    inputs: Sequence[np.ndarray] = (),
    outputs: int = 1,
    blocks: int | None = None,
    seed: int = 0,
    seconds: float = 300,
) -> list[Finding]:
    """Return what is found in a run whose blocks are shuffled.

    Args:
        inputs: arrays for the first parameters; for further ones random numbers are made, zeros where they are whole.
        outputs: how many of the last parameters are written.
        blocks: run as many of each kernel's at most.
        seed: of random inputs, and of which blocks run, and when.

    Raises:
        AssertionError: see `run_cuda`.
    """
    built = program if isinstance(program, CudaProgram) else build_cuda(program, target)
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="race-detector-") as folder:
        source, binary = Path(folder, "program.cpp"), Path(folder, "program")
        source.write_text(as_cpp(built))
        detected = source.with_suffix(".o")
        compile_cpp([*_FLAGS, "-fsanitize=thread", source, "-o", detected], built.source)
        with _ONE_AT_A_TIME:
            detector = _detector()
        compile_cpp(["-no-pie", detected, Path(detector.name, "detector.o"), "-o", binary])
        files = []
        for i, array in enumerate(built.parameters[: len(built.parameters) - outputs]):
            value = inputs[i] if i < len(inputs) else _pattern(rng, array)
            files.append(Path(folder, array.name))
            files[-1].write_bytes(np.ascontiguousarray(value).tobytes())
        environment = {"EMULATOR_ORDER": "shuffled", "EMULATOR_SEED": str(seed)}
        if blocks is not None:
            environment["EMULATOR_BLOCKS"] = str(blocks)
        rows = [line.split("\t") for line in run_binary(binary, files, environment, seconds).splitlines()]
        return _findings(rows, binary, source.read_text().splitlines())


@functools.cache
def _detector() -> tempfile.TemporaryDirectory:
    """Return a folder with the compiled detector, the same for all programs."""
    folder = tempfile.TemporaryDirectory(prefix="race-detector-")
    compile_cpp([*_FLAGS, "-O2", HEADER.with_name("race_detector.cpp"), "-o", Path(folder.name, "detector.o")])
    return folder


def _pattern(rng: np.random.Generator, array: Array) -> np.ndarray:
    dtype, size = numpy_dtype(array), min(int(np.prod(array.shape)), _PERIOD)
    return np.zeros(size, dtype) if dtype.kind in "iub" else rng.standard_normal(size, np.float32).astype(dtype)


def _findings(rows: Sequence[Sequence[str]], binary: Path, source: Sequence[str]) -> list[Finding]:
    """Return the detector's rows with their lines, those of the same lines as one."""
    places = sorted({int(place, 16) for row in rows for place in row[3:5]})
    code = [place for place in places if place >= _FIRST_ADDRESS]
    numbers = {place: place for place in places} | dict(zip(code, _line_numbers(binary, code), strict=True))
    merged: dict[tuple[str, ...], Finding] = {}
    for kind, array, count, line, other, block, thread, other_thread, offset in rows:
        lines = tuple(
            f"{number}: {source[number - 1].strip()}"
            for number in (numbers[int(p, 16)] for p in (line, other))
            if number
        )
        others = f" and {other_thread}" if int(other_thread) >= 0 else ""
        example = f"block {block}, thread {thread}{others}, byte {offset}"
        key = (kind, array, *lines)
        before = merged.get(key)
        total = int(count) + (before.bytes if before else 0)
        merged[key] = Finding(kind, array, total, lines, before.example if before else example)
    return list(merged.values())


def _line_numbers(binary: Path, code: Sequence[int]) -> list[int]:
    """Return the program's lines that machine code was made of; what is inlined counts as where it was called."""
    if not code:
        return []
    # the address is of what follows the call of the detector
    addresses = [hex(place - 1) for place in code]
    command = ["addr2line", "-a", "-i", "-e", str(binary), *addresses]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    numbers = []
    for frames in re.split(r"^0x\w+\n", answer, flags=re.MULTILINE)[1:]:
        own = re.findall(r"program\.cpp:(\d+)", frames)
        numbers.append(int(own[0]) if own else 0)
    return numbers
