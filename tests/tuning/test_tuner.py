# SPDX-License-Identifier: Apache-2.0
"""Tune, compile with what was found, resume after a kill, measure on an RPC fleet."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TESTS, run_cli
from reference import relative_norm
from tuning_networks import SIZE, small_network

import tvm_involution as ti
from tvm_involution.bench.machine_code import nvcc_present
from tvm_involution.frontend.network import resolve_network
from tvm_involution.records.database import FAILED, TuningDatabase, seconds
from tvm_involution.records.manifest import read_manifest
from tvm_involution.target import resolve_target, target_key
from tvm_involution.tuning import measure
from tvm_involution.tuning.scheduler import PATIENCE, TaskState, next_state
from tvm_involution.tuning.tasks import extract_tasks, search_context
from tvm_involution.tuning.tuner import MEASURED

KEY = target_key(resolve_target("llvm"))
MODEL = "tuning_networks:small_network"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}


def tune_command(logs: Path, *words: str) -> list[str]:
    size = f"{SIZE[0]}x{SIZE[1]}"
    return [
        *(sys.executable, "-m", "tvm_involution", "tune", MODEL, "--image-size", size, "--log-dir", str(logs)),
        *words,
    ]


def measured_seconds(logs: Path) -> list[float]:
    return [seconds(record) for record in TuningDatabase(logs / KEY / MEASURED).all_records()]


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """Logs of a run that was killed in the middle, and finished by the same command."""
    folder = tmp_path_factory.mktemp("logs")
    command = tune_command(folder, "--trials", "60")
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        for line in run.stdout:
            if int(re.search(r"(\d+) trials", line)[1]) >= 20:
                os.kill(run.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("the run ended before it could be killed")
    before = measured_seconds(folder)
    assert 20 <= len(before) < 60
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    after = measured_seconds(folder)
    assert after[: len(before)] == before, "what was measured before the kill is lost"
    assert "60 trials of 60" in done.stdout or "tasks done" in done.stdout
    tasks = extract_tasks(resolve_network(small_network(), image_size=SIZE), resolve_target("llvm"))
    assert len(after) <= 60 + len(tasks)
    return folder


def test_compile_uses_what_was_found(logs, tmp_path, rng):
    library = ti.compile(small_network(), image_size=SIZE, tuning_logs=logs)
    kernels = library.metadata.kernels
    assert kernels.record == kernels.total > 0 and kernels.borrowed == 0
    library.save(tmp_path / "net.so")
    x = rng.standard_normal((1, 8, *SIZE)).astype("float32")
    with torch.no_grad():
        expected = small_network().double()(torch.from_numpy(x).double()).numpy()
    assert relative_norm(ti.load(tmp_path / "net.so")(x), expected) < 1e-5


def test_only_the_best_are_kept_for_compile(logs):
    everything, best = TuningDatabase(logs / KEY / MEASURED), TuningDatabase(logs / KEY)
    tasks = extract_tasks(resolve_network(small_network(), image_size=SIZE), resolve_target("llvm"))
    for task in tasks:
        kept = [seconds(record) for record in best.records(task.mod)]
        assert 1 <= len(kept) <= 3 and max(kept) < FAILED
        assert len(everything.records(task.mod)) >= 1
    assert any(len(everything.records(task.mod)) > 3 for task in tasks)


def test_the_manifest_says_what_was_tuned(logs):
    manifest = read_manifest(logs / KEY)
    (network,) = manifest.networks
    assert (network.model, network.batch, network.dtype, network.image_size) == (MODEL, 1, "float32", SIZE)
    assert network.recorded == network.kernels > 0
    assert 0 < network.tuned_ms <= network.default_ms
    assert manifest.target["kind"] == "llvm"


def test_the_curves_are_drawn(logs):
    assert (logs / KEY / MEASURED / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_coverage_and_dry_run_name_the_records(logs):
    words = ["--image-size", f"{SIZE[0]}x{SIZE[1]}"]
    sys.path.insert(0, str(TESTS))
    covered = run_cli("logs", "coverage", MODEL, *words, "--tuning-logs", logs)
    assert covered.status == 0 and re.search(r"(\d+) of \1 kernels have a record", covered.out), covered
    dry = run_cli("tune", MODEL, *words, "--log-dir", logs, "--dry-run")
    assert dry.status == 0 and "PackedGemm" in dry.out and "Involution" in dry.out and KEY in dry.out
    assert not (logs / "none").exists()


def test_merge_and_prune(logs, tmp_path):
    merged = run_cli("logs", "merge", logs, logs, "--into", tmp_path / "merged", "--keep", "2")
    assert merged.status == 0, merged
    pruned = run_cli("logs", "prune", tmp_path / "merged", "--keep", "1")
    assert pruned.status == 0, pruned
    best, kept = TuningDatabase(logs / KEY), TuningDatabase(tmp_path / "merged" / KEY)
    for record in best.all_records():
        top = best.records(record.workload.mod)[0]
        assert [seconds(found) for found in kept.records(record.workload.mod)] == [seconds(top)]
    assert read_manifest(tmp_path / "merged" / KEY).networks == read_manifest(logs / KEY).networks


def test_records_of_another_tvm_are_skipped_with_a_warning(logs, tmp_path, caplog):
    copy_logs(logs, tmp_path, tvm_version="0.1.0")
    library = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path)
    assert library.metadata.kernels.record == 0
    assert "TVM 0.1.0" in caplog.text
    assert "tune again" in run_cli("logs", "merge", tmp_path, "--into", tmp_path / "into").error_line()


def test_the_nearest_target_serves(logs, tmp_path):
    """The same records under the name of another CPU with the same vector registers, and without them."""
    other = {**read_manifest(logs / KEY).target, "mcpu": "znver5" if KEY != "znver5" else "znver4"}
    wide = "avx512f" in " ".join(Path("/proc/cpuinfo").read_text().split())
    if not wide:
        other["mcpu"] = "haswell" if KEY != "haswell" else "broadwell"
    copy_logs(logs, tmp_path / "near", key=other["mcpu"], target=other)
    kernels = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path / "near").metadata.kernels
    assert kernels.record == kernels.borrowed == kernels.total
    assert kernels.borrowed_from == other["mcpu"]
    far = {**other, "mcpu": "nehalem"}
    copy_logs(logs, tmp_path / "far", key="nehalem", target=far)
    assert ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path / "far").metadata.kernels.record == 0


def copy_logs(logs: Path, into: Path, key: str = KEY, **changes: object) -> None:
    folder = into / key
    folder.mkdir(parents=True)
    for file in (logs / KEY).iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def test_the_users_own_logs_are_the_default(logs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    copy_logs(logs, tmp_path / "tvm-involution" / "tuning_logs")
    kernels = ti.compile(small_network(), image_size=SIZE).metadata.kernels
    assert kernels.record == kernels.total
    assert any(MODEL in row for row in run_cli("targets", "--json").out.splitlines())


def test_one_task_that_fails_stops_no_other(tmp_path, monkeypatch):
    """MetaSchedule aborts on some programs; here it does on every convolution."""
    from tvm_involution.tuning import tuner

    plain = tuner._Search._new_candidates

    def fail(self, state, context):
        if state.task.rule == "PackedGemm":
            raise RuntimeError("unsupported case\nwith a stack")
        return plain(self, state, context)

    monkeypatch.setattr(tuner._Search, "_new_candidates", fail)
    result = ti.tune(small_network(), trials=20, image_size=SIZE, log_dir=tmp_path)
    stopped = {state.task.rule: state.stopped for state in result.states}
    assert stopped["PackedGemm"] == "MetaSchedule failed: unsupported case"
    assert result.trials == 20
    kernels = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path).metadata.kernels
    assert kernels.record == kernels.total, "the default of a failed task is recorded"


def test_a_wrong_winner_does_not_win(tmp_path, monkeypatch):
    from tvm_involution.tuning.verify import Verifier

    monkeypatch.setattr(Verifier, "error", lambda self, measurer, artifact: "wrong results: relative norm 1.0e+00")
    result = ti.tune(small_network(), trials=30, image_size=SIZE, log_dir=tmp_path)
    for state in result.states:
        assert state.best == state.default_seconds
    defaults = {str(state.task.default.trace) for state in result.states}
    best = TuningDatabase(tmp_path / KEY)
    for state in result.states:
        assert str(best.records(state.task.mod)[0].trace) in defaults


def test_an_exported_program_is_tuned_as_it_is(tmp_path):
    program = torch.export.export(small_network(), (torch.zeros(2, 8, *SIZE),))
    torch.export.save(program, tmp_path / "small.pt2")
    ti.tune(tmp_path / "small.pt2", trials=2, log_dir=tmp_path)
    (network,) = read_manifest(tmp_path / KEY).networks
    assert (network.batch, network.dtype, network.image_size) == (2, "float32", SIZE)
    kernels = ti.compile(tmp_path / "small.pt2", tuning_logs=tmp_path).metadata.kernels
    assert kernels.record == kernels.total


def test_two_runs_do_not_share_a_folder(tmp_path):
    import fcntl

    folder = tmp_path / KEY / MEASURED
    folder.mkdir(parents=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ti.UserError, match="another run is tuning"):
            ti.tune(small_network(), trials=1, image_size=SIZE, log_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"target": "bogus"}, "unknown target"),
        ({"target": "nvidia/nvidia-h100"}, "no GPU here"),
        ({"target": '{"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"}'}, "cannot run code for"),
        ({"dtype": "int8"}, "unknown dtype"),
        ({"trials": 0}, "budget must be positive"),
        ({"minutes": -1}, "budget must be positive"),
        ({"rpc": "nowhere", "rpc_key": "k"}, "HOST:PORT"),
        ({"rpc": "127.0.0.1:9"}, "rpc_key"),
        ({"rpc": "127.0.0.1:9", "rpc_key": "k"}, "no RPC tracker at 127.0.0.1:9"),
        ({"log_dir": "/proc/none"}, "cannot write"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, arguments, words):
    with pytest.raises(ti.UserError, match=words) as error:
        ti.tune(small_network(), image_size=SIZE, **{"log_dir": tmp_path, **arguments})
    assert "\n" not in str(error.value)


def state(calls: int, default: float, *history: float, batches: int = 1) -> TaskState:
    task = type("Task", (), {"calls": calls})()
    best = min([default, *history])
    return TaskState(task, default, list(history), [best] * batches if history else [])


def test_the_scheduler_spends_where_the_network_gains():
    long, short = state(10, 1e-3, 1e-3), state(1, 1e-3, 1e-3)
    assert next_state([short, long]) is long
    untouched = state(1, 1e-6)
    assert next_state([short, long, untouched]) is untouched, "each task gets a batch first"
    tired = state(100, 1e-3, *[1e-3] * PATIENCE, batches=3)
    assert next_state([tired, short]) is short and tired.stopped == "no gain"
    still_gaining = state(1, 1e-3, *[1e-3] * PATIENCE, 0.9e-3)
    assert next_state([still_gaining]) is still_gaining


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def fleet(servers: int) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A tracker with `servers` devices under the key `here`, on loopback."""
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    tracker_words = [
        "-m",
        "tvm.exec.rpc_tracker",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--port-end",
        str(port + 1),
    ]
    tracker = subprocess.Popen([sys.executable, *tracker_words], **quiet)
    server_words = [
        "-m",
        "tvm.exec.rpc_server",
        "--tracker",
        f"127.0.0.1:{port}",
        "--key",
        "here",
        "--host",
        "127.0.0.1",
    ]
    devices = []
    try:
        wait_for(port)
        devices += [subprocess.Popen([sys.executable, *server_words], **quiet) for _ in range(servers)]
        from tvm_involution.tuning.measure import RpcTracker

        deadline = time.monotonic() + 60
        while RpcTracker("127.0.0.1", port, "here").servers() < servers:
            assert time.monotonic() < deadline, "the servers did not register"
            time.sleep(0.3)
        yield f"127.0.0.1:{port}", devices
    finally:
        for process in [*devices, tracker]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    pytest.fail("the tracker did not start")


def test_a_fleet_measures_and_loses_a_server(tmp_path, rng):
    with fleet(2) as (address, devices):
        killed = []

        def kill_one(run) -> None:
            if run.trials >= 15 and not killed:
                os.killpg(devices[0].pid, signal.SIGKILL)
                killed.append(run.trials)

        result = ti.tune(
            small_network(),
            trials=40,
            image_size=SIZE,
            log_dir=tmp_path,
            rpc=address,
            rpc_key="here",
            progress=kill_one,
        )
    assert killed and result.trials == 40
    times = np.array(measured_seconds(tmp_path))
    assert (times < FAILED).mean() > 0.9, "a server that goes must not fail its candidates"
    kernels = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path).metadata.kernels
    assert kernels.record == kernels.total


def test_a_fleet_without_servers_is_named(tmp_path):
    with fleet(0) as (address, _), pytest.raises(ti.UserError, match="no device with key 'here'"):
        ti.tune(small_network(), trials=4, image_size=SIZE, log_dir=tmp_path, rpc=address, rpc_key="here")


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
def test_cuda_up_to_measuring(tmp_path, rng):
    """Tasks, candidates and building for a GPU work without one."""
    target = resolve_target("nvidia/nvidia-h100")
    tasks = extract_tasks(resolve_network(small_network(), image_size=SIZE), target, dtype="float16")
    linker = measure.linker_of(target)
    for task in (tasks[i] for i in rng.choice(len(tasks), 3, replace=False)):  # nvcc takes seconds for each
        assert Path(measure._build(task.default.mod, target, str(tmp_path / task.name), linker)).is_file()
    task = next(task for task in tasks if "involution" in task.name)
    context = search_context(task, logging.getLogger("test"), 2)
    context.pre_tuning(4, 4, task.spaces, None, None)
    candidate = context.generate_measure_candidates()[0]
    assert Path(measure._build(candidate.sch.mod, target, str(tmp_path / "candidate"), linker)).is_file()
