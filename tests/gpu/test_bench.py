# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark, on this CPU: all steps of a small network, its kernels for sm_90a, the paper's kernel emulated."""

from __future__ import annotations

import ctypes
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import cuda_emulator
import numpy as np
import pytest
import torch
from command_line import TESTS
from cuda_emulator import Array, CudaProgram, Launch, run_cuda
from gpu_bench_networks import small_network
from programs import TOLERANCE, as_dtype
from reference import involution2d as reference
from reference import relative_norm

from tvm_involution.bench.machine_code import compile_kernel, nvcc_present
from tvm_involution.schedules import default_schedule
from tvm_involution.target import gpu_name, lowering_config, resolve_target

BENCHMARKS = TESTS.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import tvm  # noqa: E402
from gpu import paper_kernel, peers, workers  # noqa: E402
from gpu.involutions import FUSED, OURS, SPAN, Layer, layers_of, make_case, our_program  # noqa: E402
from gpu.results import FAILED, Results  # noqa: E402
from gpu.settings import OURS as BENCH_OURS  # noqa: E402
from gpu.settings import TUNED, Settings  # noqa: E402
from gpu.steps import check  # noqa: E402
from gpu.steps.draw import draw  # noqa: E402
from gpu.steps.networks import tuned  # noqa: E402
from gpu.steps.operators import CONTENDERS, PAPER, work_of  # noqa: E402
from gpu.steps.tune import tune  # noqa: E402
from gpu.workers import NO_TIME, Worker, do_all, one_line  # noqa: E402

MODEL = "gpu_bench_networks:small_network"
WORDS = ["--models", MODEL, "--more-models", "", "--image-size", "12", "--batch", "2", "--dtypes", "float32"]


def run_benchmark(out: Path, *words: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    command = [sys.executable, str(BENCHMARKS / "gpu"), "--out", str(out), *WORDS, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def settings_for(out: Path, seconds: float) -> Settings:
    """Return settings for steps in this process."""
    return Settings(
        out=out,
        target="llvm",
        models=(MODEL,),
        more_models=(),
        batches=(2,),
        precisions=("float32",),
        image_size=12,
        without=("torch",),
        minutes=10.0,
        deadline=time.time() + seconds,
        in_process=True,
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Results of all steps but tuning."""
    folder = tmp_path_factory.mktemp("gpu")
    steps = "check,networks,operators,layers"
    run_benchmark(folder, "--target", "llvm", "--in-process", "--without", "torch.compile", "--only", steps)
    return folder


@pytest.fixture
def results(out) -> Results:
    return Results(out)


def test_every_kernel_is_right(results):
    assert not results.rows("failures")
    rows = results.rows("check")
    assert [row for row in rows if row["right"] is not True] == []
    assert {row["batch"] for row in rows} == {1, 2, 3}
    assert {row["kernel"] for row in rows if row["batch"] == 3} == set(OURS)
    assert all(row["unwritten"] == 0 and row["error"] < TOLERANCE["float32"] for row in rows)


def test_networks_are_timed_or_say_why_not(results):
    rows = {row["contender"]: row for row in results.rows("networks")}
    assert rows.keys() == {BENCH_OURS, peers.EAGER, peers.PAPER}
    assert rows[peers.PAPER][FAILED] == "no GPU"
    for contender in (BENCH_OURS, peers.EAGER):
        row = rows[contender]
        assert row["error"] < 1e-5 and 0 < row["min_ms"] <= row["ms"] and row["rounds"] > 1
    ours = rows[BENCH_OURS]
    assert ours["gflop"] > 0 and ours["megabytes"] > 0 and ours["floor_ms"] > 0
    assert ours["launches"] == sum(row["calls"] for row in results.rows("layers"))


def test_operators_are_timed_and_right(results):
    rows = results.rows("operators")
    labels = {layer.label() for layer in layers_of(MODEL, 12)}
    assert {(row["layer"], row["contender"]) for row in rows} == {(a, b) for a in labels for b in CONTENDERS}
    for row in rows:
        if row["contender"] == PAPER:
            assert row[FAILED] == "no GPU"
        else:
            assert row["error"] < TOLERANCE["float32"] and row["us"] > 0 and row["share_of_floor"] > 0


def test_layers_have_roofs(results):
    rows = results.rows("layers")
    assert all(row["us"] > 0 and row["total_us"] > 0 and row["rule"] for row in rows)
    assert sum("involution2d" in row["kernel"] for row in rows) == 2
    copy, product = results.row("machine", roof="copy"), results.row("machine", roof="float32")
    for row in rows:
        floor = max(row["bytes"] / copy["gbs"] / 1e3, row["operations"] / product["tflops"] / 1e6)
        assert row["floor_us"] == pytest.approx(floor, rel=1e-3)


def test_tables_and_picture(out, results):
    text = (out / "tables.md").read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Machine",
        "Kernels against plain programs",
        "Networks, float32, batch 2",
        "Involutions, float32, batch 2: us (share of the floor)",
        "Layers, float32, batch 2",
    ]
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables if "share of roof" in line}
    assert len(widths) == 1 and all(line.count("|") > 3 for line in tables)
    for row in results.rows("layers"):
        assert f"| {row['kernel']} | {row['shapes']} |" in text
    assert (out / "gpu.png").read_bytes().startswith(b"\x89PNG")
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8 and sum(path.stat().st_size for path in files) < 16 << 20


def test_pictures_need_no_roofs(tmp_path):
    results = Results(tmp_path)
    for contender in (BENCH_OURS, peers.EAGER):
        row = {"model": "rednet50", "contender": contender, "precision": "float32", "batch": 1}
        results.put("networks", row, ms=1.5, min_ms=1.25)
    results.put("layers", {"kernel": "a", "precision": "float32", "batch": 1, "tuned": False}, failed="no time left")
    draw(settings_for(tmp_path, 60), results)
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")
    assert "| rednet50 | ours | 1.5 | 1.25 |" in (tmp_path / "tables.md").read_text()


def test_a_second_call_measures_what_is_missing(out):
    before = json.loads((out / "results.json").read_text())
    words = ("--target", "llvm", "--in-process", "--without", "torch.compile", "--only", "layers,operators")
    run_benchmark(out, *words, "--batch", "2,1")
    after = json.loads((out / "results.json").read_text())
    for step in ("machine", "check", "networks"):
        assert after[step] == before[step]
    timed = [row for row in before["layers"] + before["operators"] if "us" in row]
    assert all(row in after["layers"] + after["operators"] for row in timed)
    assert {row["batch"] for row in after["layers"]} == {1, 2}


def test_tuning_records_are_found(tmp_path):
    results = Results(tmp_path)
    tune(settings_for(tmp_path, 40), results)
    (row,) = results.rows("tune")
    assert row["default_ms"] > 0 and row["tuned_ms"] > 0, row
    tuned(settings_for(tmp_path, 600), results)
    default, best = (results.row("tuned", contender=contender) for contender in (BENCH_OURS, TUNED))
    assert default["kernels"].startswith("0 by record")
    assert not best["kernels"].startswith("0 by record") and best["error"] < 1e-5
    assert any(row["rule"] == "record" for row in results.rows("layers", tuned=True))


def test_no_time_is_said(tmp_path):
    results = Results(tmp_path)
    tuned(settings_for(tmp_path, -1), results)
    rows = results.rows("tuned") + results.rows("layers")
    assert len(rows) > 2 and all(row[FAILED] == NO_TIME for row in rows)


def test_steps_in_processes(tmp_path):
    run_benchmark(tmp_path, "--target", "llvm", "--only", "machine")
    results = Results(tmp_path)
    assert results.row("machine", roof="copy")["gbs"] > 0
    assert results.row("machine", roof="none")["torch"] == torch.__version__
    assert "## Machine" in (tmp_path / "tables.md").read_text()


@pytest.mark.skipif(gpu_name() is not None, reason="there is a GPU")
def test_without_a_gpu_is_said_in_a_line(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "--target llvm" in done.stderr
    assert not (tmp_path / "out").exists()


def crash() -> None:
    os.abort()


def block(seconds: int) -> None:
    """Sleep and let no other thread run, as a library that waits for a GPU may."""
    ctypes.PyDLL(None).sleep(seconds)


def test_a_job_that_kills_its_process_costs_itself_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (TESTS, TESTS.parent, BENCHMARKS))))
    import dataclasses

    settings = dataclasses.replace(settings_for(tmp_path, 600), in_process=False)
    with Worker(settings, 1) as worker:
        ended = "ChildProcessError: Subprocess terminated"
        assert worker.do(crash, seconds=300).failure == ended
        assert worker.do(math.sqrt, 4.0, seconds=300).value == 2.0
        assert worker.do(time.sleep, 60, seconds=0.2).failure in ("not done after 0 s", ended)
        monkeypatch.setattr(workers, "START_SECONDS", 10.0)
        assert worker.do(block, 600, seconds=0.2).failure == ended


def test_outcomes_come_with_their_numbers(tmp_path):
    outcomes = dict(do_all(settings_for(tmp_path, 600), math.sqrt, [(4.0,), (-1.0,), (9.0,)], 60, 2))
    assert [outcomes[0].value, outcomes[2].value] == [2.0, 3.0]
    assert outcomes[1].failure.startswith("ValueError: ")
    assert one_line(RuntimeError("CUDA out of memory. Tried to allocate")) == "out of memory"


@pytest.mark.parametrize("fault", ["nothing written", "wrong"])
def test_wrong_kernels_are_seen(tmp_path, monkeypatch, fault):
    layer = check.LAYERS[0]
    arguments = ("ours NHWC", layer, 3, "float32", resolve_target("llvm"), "cpu", tmp_path)
    good = check._fields(check.Outcome(check.check_involution(*arguments)), "float32")
    assert good["right"] is True and good["unwritten"] == 0

    def load(*_):
        return lambda tensors: lambda: tensors[-1].fill_(1.0) if fault == "wrong" else None

    monkeypatch.setattr(check, "load", load)
    bad = check._fields(check.Outcome(check.check_involution(*arguments)), "float32")
    assert bad["right"] is False and bad["unwritten"] == (0 if fault == "wrong" else 3 * 30 * 13 * 11)


def test_peers_compute_the_network(rng, monkeypatch):
    def involution(x, kernel, window, stride, dilation):
        n, taps, height, width = kernel.shape
        padding = (dilation * (window - 1) // 2,) * 2
        kernel = kernel.reshape(n, taps // window**2, window, window, height, width)
        return torch.from_numpy(reference(x, kernel, (stride,) * 2, padding, (dilation,) * 2)).to(x.dtype)

    monkeypatch.setattr(paper_kernel, "involution", involution)
    x = torch.from_numpy(rng.standard_normal((3, 3, 11, 13), np.float32))
    with torch.no_grad():
        expected = small_network().double()(x.double()).numpy()
        for contender in (peers.EAGER, peers.PAPER):
            own = x.to(memory_format=peers.memory_format(contender))
            result = peers.prepare(contender, small_network(), "float32", own)(own)
            assert relative_norm(result.numpy(), expected) < 1e-5
        layer = Layer(30, 11, 13, 5, 2, 7, dilation=1, group_channels=6)
        case = make_case(layer, 3, "float32", "cpu", 5)
        found = peers.unfold_involution(layer)(case.x, case.kernel)
        windows = case.kernel.reshape(3, 5, 5, 5, *layer.out).numpy()
        assert relative_norm(found.numpy(), reference(case.x, windows, (2, 2), (2, 2))) < 1e-5


@pytest.mark.skipif(not cuda_emulator.available, reason="needs g++")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_paper_kernel_is_right(rng, dtype):
    n, groups, group_channels = 2, int(rng.integers(1, 4)), int(rng.integers(1, 6))
    height, width = (int(v) for v in rng.integers(5, 14, 2))
    window, stride, dilation = int(rng.choice([3, 5, 7])), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    out_height, out_width = -(-height // stride), -(-width // stride)
    print(groups, group_channels, height, width, window, stride, dilation)
    x = as_dtype(rng.standard_normal((n, groups * group_channels, height, width)), dtype)
    kernel = as_dtype(rng.standard_normal((n, groups, window, window, out_height, out_width)), dtype)
    padding = (dilation * (window - 1) // 2,) * 2
    expected = reference(x, kernel, (stride,) * 2, padding, (dilation,) * 2)
    packed = kernel.reshape(n, -1, out_height, out_width)
    arrays = [Array(f"arg{i}", a.shape, dtype) for i, a in enumerate((x, packed, expected))]
    blocks = -(-expected.size // paper_kernel.THREADS)
    launch = Launch("involution", ("arg0", "arg1", "arg2"), (blocks, 1, 1), (paper_kernel.THREADS, 1, 1), 0)
    source = paper_kernel.source(x.shape, packed.shape, window, stride, dilation, dtype)
    program = CudaProgram(source, tuple(arrays), (), (launch,))
    (result,) = run_cuda(program, [x, packed], resolve_target("nvidia/nvidia-h100"))
    assert relative_norm(result, expected) < TOLERANCE[dtype]


@pytest.fixture(scope="module")
def layers() -> list[Layer]:
    return list(layers_of("rednet50", 224))


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
@pytest.mark.parametrize("name", OURS)
def test_our_programs_build_for_a_gpu(rng, layers, name):
    assert len(layers) == 8
    layer, dtype = layers[int(rng.integers(len(layers)))], str(rng.choice(["float16", "float32"]))
    print(layer.label(), dtype)
    target = resolve_target("nvidia/nvidia-h100")
    program = our_program(name, layer, 32, target, make_case(layer, 1, dtype, "cpu", 0))
    assert ("hidden" in program.roles) == (name in (FUSED, SPAN)) and ("x" in program.roles) == (name != SPAN)
    schedule, rule = default_schedule(program.mod["main"], target)
    assert rule
    with tvm.transform.PassContext(config=lowering_config(target)):
        source = tvm.compile(schedule.mod, target).mod.imports[0].inspect_source()
    code = compile_kernel(source, "sm_90a")
    assert code.spilled_bytes == 0 and code.threads <= 1024


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
def test_paper_kernel_builds_for_a_gpu():
    for dtype in ("float32", "float16", "bfloat16"):
        source = paper_kernel.source((32, 64, 56, 56), (32, 4 * 49, 56, 56), 7, 1, 1, dtype)
        assert compile_kernel(source, "sm_90a").registers <= 64  # 1024 threads a block


def test_floors_are_those_of_the_arrays():
    # x, kernel and result over 3.03 TB/s, in float32
    for channels, size, window, microseconds in ((32, 112, 3, 43), (64, 56, 7, 43), (128, 28, 7, 21), (512, 7, 7, 5.4)):
        layer = Layer(channels, size, size, window, 1, channels // 4)
        moved, operations = work_of(layer, 32, 4, "ours NHWC")
        assert moved / 3.03e6 == pytest.approx(microseconds, rel=0.03)
        assert operations == 2 * 32 * channels * size**2 * window**2


@pytest.mark.gpu
@pytest.mark.skipif(gpu_name() is None, reason="needs an NVIDIA GPU")
def test_on_a_gpu(tmp_path):
    run_benchmark(tmp_path, "--only", "check,networks,operators,layers", "--dtypes", "float16,float32")
    results = Results(tmp_path)
    assert [row for row in results.rows("check") if row["right"] is not True] == []
    assert all(row["error"] < 2e-2 for row in results.rows("networks") + results.rows("operators") if "error" in row)
    assert all(row["timed_by"] == "graph" for row in results.rows("layers"))
