# SPDX-License-Identifier: Apache-2.0
"""The race detector finds each kind of race and nothing else; and GPU rules' kernels have none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import cuda_emulator
import pytest
import race_report
from cuda_emulator import Array, CudaProgram, Launch, build_cuda
from gpu_kernels import gpu_programs
from race_detector import find_races

from tvm_involution.schedules import GPU_RULES, default_schedule
from tvm_involution.target import resolve_target

pytestmark = pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
TARGET = resolve_target("nvidia/nvidia-h100")
THREADS, BLOCKS = 64, 3

COPY = """asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"
    :: "r"(__cvta_generic_to_shared(tile + 4 * t)), "l"(x + 4 * t), "n"(16)); """
COMMIT, WAIT = 'asm volatile("cp.async.commit_group;"); ', 'asm volatile("cp.async.wait_group %0;" :: "n"(0)); '
SYNC, SYNC_WARP = "__syncthreads(); ", "__syncwarp(); "

# what is found -> a body without and with what it lacks, of a kernel that each of 64 threads t in 3 blocks b runs, with
# an input x and an output y of 256 numbers a block, and shared memory `tile` of as many
RACES = {
    "write-write": [
        ("tile[t / 2] = x[t]; ", "if (t % 2 == 0) tile[t / 2] = x[t]; "),
        # of different warps, of one warp
        ("tile[t % 32] = x[t]; ", "tile[t] = x[t]; "),
        ("tile[t / 2] = x[t]; if (t % 2) tile[t / 2] = 1; ", "if (t % 2) tile[t / 2] = 1; "),
        # in global memory
        ("y[t / 2] = x[t]; ", "if (t % 2 == 0) y[256 * b + t / 2] = x[t]; "),
    ],
    "read-write": [
        ("tile[t] = x[t]; y[256 * b + t] = tile[63 - t]; ", f"tile[t] = x[t]; {SYNC}y[256 * b + t] = tile[63 - t]; "),
        (
            "tile[t] = x[t]; y[256 * b + t] = tile[t ^ 1]; ",
            f"tile[t] = x[t]; {SYNC_WARP}y[256 * b + t] = tile[t ^ 1]; ",
        ),
        # written before it has been read
        (
            f"tile[t] = x[t]; {SYNC}float v = tile[63 - t]; tile[t] = 2 * v; {SYNC}y[256 * b + t] = tile[t]; ",
            f"tile[t] = x[t]; {SYNC}float v = tile[63 - t]; {SYNC}tile[t] = 2 * v; {SYNC}y[256 * b + t] = tile[t]; ",
        ),
        # a barrier of a warp orders no other warp
        (
            f"tile[t] = x[t]; {SYNC_WARP}y[256 * b + t] = tile[t ^ 32]; ",
            f"tile[t] = x[t]; {SYNC}y[256 * b + t] = tile[t ^ 32]; ",
        ),
        # many read, of whom the writer is one
        (
            f"tile[t] = x[t]; {SYNC}float v = tile[0]; if (t == 63) tile[0] = v + 1; y[256 * b + t] = v; ",
            f"tile[t] = x[t]; {SYNC}float v = tile[0]; {SYNC}if (t == 63) tile[0] = v + 1; y[256 * b + t] = v; ",
        ),
        # in global memory
        (
            "y[256 * b + t] = x[t]; y[256 * b + 64 + t] = y[256 * b + 63 - t]; ",
            f"y[256 * b + t] = x[t]; {SYNC}y[256 * b + 64 + t] = y[256 * b + 63 - t]; ",
        ),
        # all write the same, and one reads it who did not
        (
            "if (t != 7) tile[0] = 1; else y[256 * b] = tile[0]; ",
            f"if (t == 6) tile[0] = 1; {SYNC}if (t == 7) y[256 * b] = tile[0]; ",
        ),
        # a copy has landed for the thread that waited
        (
            f"{COPY}{COMMIT}{WAIT}y[256 * b + t] = tile[4 * (63 - t)]; ",
            f"{COPY}{COMMIT}{WAIT}{SYNC}y[256 * b + t] = tile[4 * (63 - t)]; ",
        ),
    ],
    "same value": [
        ("tile[0] = x[0]; ", "if (t == 0) tile[0] = x[0]; "),
        ("y[256 * b] = 1; ", "if (t == 0) y[256 * b] = 1; "),
    ],
    "read of a copy under way": [
        (f"{COPY}{COMMIT}y[256 * b + t] = tile[4 * t]; ", f"{COPY}{COMMIT}{WAIT}y[256 * b + t] = tile[4 * t]; "),
        (
            f"{COPY}{COMMIT}{SYNC}y[256 * b + t] = tile[4 * (63 - t)]; ",
            f"{COPY}{COMMIT}{WAIT}{SYNC}y[256 * b + t] = tile[4 * (63 - t)]; ",
        ),
    ],
    "write over a copy under way": [
        (f"{COPY}{COMMIT}tile[4 * t] = 1; {WAIT}", f"{COPY}{COMMIT}{WAIT}tile[4 * t] = 1; "),
        (f"{COPY}{COMMIT}{COPY}{COMMIT}{WAIT}", f"{COPY}{COMMIT}{WAIT}{COPY}{COMMIT}{WAIT}"),
    ],
    "read of what nobody wrote": [
        (
            f"if (t < 63) tile[t] = x[t]; {SYNC}y[256 * b + t] = tile[t]; ",
            f"tile[t] = x[t]; {SYNC}y[256 * b + t] = tile[t]; ",
        ),
        ("y[256 * b + t] += x[t]; ", "y[256 * b + t] = 0; y[256 * b + t] += x[t]; "),
    ],
    "written by two blocks": [("y[63 * b + t] = x[b + t]; ", "y[64 * b + t] = x[b + t]; ")],
    "written by a block, read by another": [
        (
            "y[256 * b + t] = x[t]; if (b == 1) y[256 * b + 64 + t] = y[t]; ",
            "y[256 * b + t] = x[t]; if (b == 1) y[256 * b + 64 + t] = y[256 * b + t]; ",
        )
    ],
    "same value by two blocks": [("if (t == 0) y[0] = 1; ", "if (t == 0) y[b] = 1; ")],
    "write to an input": [("x[256 * b + t] = 1; ", "y[256 * b + t] = 1; ")],
}


def kernel(body: str) -> CudaProgram:
    source = f"""
extern "C" __global__ void kernel(float* x, float* y) {{
  __shared__ float tile[256];
  int t = threadIdx.x, b = blockIdx.x;
  {body}
}}"""
    arrays = tuple(Array(name, (256 * BLOCKS,), "float32") for name in ("x", "y"))
    launch = Launch("kernel", ("x", "y"), (BLOCKS, 1, 1), (THREADS, 1, 1), 0)
    return CudaProgram(source, arrays, (), (launch,))


@pytest.mark.parametrize(("kind", "racy", "mended"), [(kind, *pair) for kind, pairs in RACES.items() for pair in pairs])
def test_each_kind_is_found(rng, kind, racy, mended):
    seed = int(rng.integers(1 << 30))
    found = find_races(kernel(racy), TARGET, seed=seed)
    assert kind in {finding.kind for finding in found}, found
    assert all(finding.harmless == kind.startswith("same value") for finding in found if finding.kind == kind)
    assert find_races(kernel(mended), TARGET, seed=seed) == []


def test_a_finding_says_where():
    program = kernel("tile[t] = x[t]; \n y[256 * b + t] = tile[63 - t];")
    finding = next(finding for finding in find_races(program, TARGET) if finding.kind == "read-write")
    (number, line), (other, other_line) = (text.split(": ", 1) for text in finding.lines)
    assert {line, other_line} == {"tile[t] = x[t];", "y[256 * b + t] = tile[63 - t];"}
    assert abs(int(number) - int(other)) == 1
    assert finding.array == "tile" and finding.bytes > 0
    assert re.fullmatch(r"block \d, thread \d+ and \d+, byte \d+", finding.example)


def test_a_sample_of_blocks_has_neighbours():
    """Half of the blocks that run lie beside each other, so that what one writes of another's is seen."""
    program = kernel("y[4 * b + t] = x[4 * b + t]; ")
    many = replace(
        program,
        parameters=tuple(replace(array, shape=(64 * 1001,)) for array in program.parameters),
        launches=(replace(program.launches[0], grid=(1000, 1, 1)),),
    )
    for seed in range(3):
        found = find_races(many, TARGET, blocks=6, seed=seed)
        assert {finding.kind for finding in found} <= {"written by two blocks", "same value by two blocks"} and found
    later = replace(many, launches=many.launches * 2)  # what was left out is nothing that nobody wrote
    assert all("nobody" not in finding.kind for finding in find_races(later, TARGET, blocks=6))


def test_barriers_that_are_left_out_are_missed():
    """Of each kernel that is built on barriers and asynchronous copies, those that are needed."""
    programs = {program.name: program.func for program in gpu_programs(TARGET)}
    for name in ("convolution_few_pixels_float16", "spanned_mma_s2_float16", "average_float32"):
        built = build_cuda(default_schedule(programs[name], TARGET)[0], TARGET)
        places = [match.span() for match in re.finditer(r"__syncthreads\(\);", built.source)]
        assert places, name
        without = built.source.replace("__syncthreads();", "")
        found = find_races(replace(built, source=without), TARGET)
        assert any(finding.kind in ("read-write", "write-write") for finding in found), name


def test_every_rule(rng):
    """One program of each, with its default; `race_report.py` runs all, with their tuning variants, and networks."""
    programs: dict[str, list] = {}
    for program in gpu_programs(TARGET):
        programs.setdefault(program.rule, []).append(program)
    assert programs.keys() == {rule.name for rule in GPU_RULES} - {"DlightFallback"}
    chosen = [options[int(rng.integers(len(options)))] for options in programs.values()]
    cases = [race_report.default_case(program.name, program.func, TARGET) for program in chosen]
    print([case.name for case in cases])
    assert race_report.report(cases, blocks=40, seed=int(rng.integers(1 << 30))) == []


@pytest.mark.every_kernel
@pytest.mark.parametrize("part", race_report.PARTS)
def test_all_kernels(part):
    assert unclean(["--only", part]) == []


def unclean(words: Sequence[str]) -> list[str]:
    return race_report.run(race_report.parser().parse_args(words))
