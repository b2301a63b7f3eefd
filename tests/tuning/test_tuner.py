# SPDX-License-Identifier: Apache-2.0
"""Tune, compile with what was found, resume after a kill, measure on an RPC fleet."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import TESTS, default_signals, run_cli
from reference import relative_norm
from tuning_networks import SIZE, small_network

import tvm_involution as ti
from tvm_involution.bench.machine_code import nvcc_present
from tvm_involution.frontend.network import resolve_network
from tvm_involution.records.database import FAILED, TuningDatabase, seconds
from tvm_involution.records.manifest import read_manifest
from tvm_involution.target import resolve_target, target_key
from tvm_involution.tuning import measure
from tvm_involution.tuning.fleet import RpcTracker
from tvm_involution.tuning.scheduler import PATIENCE, Contest, TaskState, gain_and_spread, next_state
from tvm_involution.tuning.search import PointSearch
from tvm_involution.tuning.tasks import extract_tasks
from tvm_involution.tuning.tuner import MEASURED, REPORT, _resumed

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
    command = tune_command(folder, "--trials", "40")
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True) as run:
        for line in run.stdout:
            if int(re.search(r"(\d+) trials", line)[1]) >= 16:
                os.kill(run.pid, signal.SIGKILL)
                break
        else:
            pytest.fail("the run ended before it could be killed")
    before = measured_seconds(folder)
    assert 16 <= len(before) < 50
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    after = measured_seconds(folder)
    assert after[: len(before)] == before, "what was measured before the kill is lost"
    assert "40 trials of 40" in done.stdout or "tasks done" in done.stdout
    tasks = extract_tasks(resolve_network(small_network(), image_size=SIZE), resolve_target("llvm"))
    database = TuningDatabase(folder / KEY / MEASURED)
    assert sum(len(_resumed(task, database).history) for task in tasks) <= 40
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


def test_the_report_says_what_came_of_it(logs):
    report = json.loads((logs / KEY / MEASURED / REPORT).read_text())
    decided = [entry for entry in report["tasks"] if entry["finalists_us"]]
    assert decided and all(len(rounds) == 3 for entry in decided for rounds in entry["finalists_us"])
    for entry in decided:
        medians = [float(np.median(rounds)) for rounds in [entry["default_us"], *entry["finalists_us"]]]
        assert medians[0 if entry["winner"] is None else entry["winner"] + 1] == min(medians)
    assert report["network"] is not None or "no kernel is faster" in report["not_compared"]
    if report["network"] is not None:
        ratio = np.median(report["network"]["default_ms"]) / np.median(report["network"]["tuned_ms"])
        assert report["network"]["gain"] == pytest.approx(ratio)
    assert {"find tasks", "build", "time"} <= report["seconds"].keys()


def test_the_curves_are_drawn(logs):
    assert (logs / KEY / MEASURED / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_coverage_and_dry_run_name_the_records(logs):
    words = ["--image-size", f"{SIZE[0]}x{SIZE[1]}"]
    sys.path.insert(0, str(TESTS))
    covered = run_cli("logs", "coverage", MODEL, *words, "--tuning-logs", logs)
    assert covered.status == 0 and re.search(r"(\d+) of \1 kernels have a record", covered.out), covered
    dry = run_cli("tune", MODEL, *words, "--log-dir", logs, "--dry-run")
    assert dry.status == 0 and "PackedGemm" in dry.out and "Involution" in dry.out
    assert KEY[:10] in dry.out  # of a name with many features, what the table has room for
    assert not (logs / "none").exists()


def test_merge_and_prune(logs, tmp_path):
    merged = run_cli("logs", "merge", logs, logs, "--into", tmp_path / "merged", "--keep", "2")
    assert merged.status == 0, merged
    refused = run_cli("logs", "merge", logs, tmp_path / "missing", "--into", tmp_path / "whole")
    assert "missing" in refused.error_line() and not (tmp_path / "whole").exists(), "half of a merge"
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
    far = {**other, "mcpu": "nehalem", "mattr": []}
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

    plain = tuner._Search._search

    def fail(self, state):
        if state.task.rule == "PackedGemm":
            raise RuntimeError("unsupported case\nwith a stack")
        return plain(self, state)

    monkeypatch.setattr(tuner._Search, "_search", fail)
    result = ti.tune(small_network(), trials=20, image_size=SIZE, log_dir=tmp_path, compare=False)
    # a task with a small share of the time may not have had its turn, on some machines
    stopped = {state.stopped for state in result.states if state.task.rule == "PackedGemm"} - {""}
    assert stopped == {"MetaSchedule failed: unsupported case"}
    assert result.trials == 20
    kernels = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path).metadata.kernels
    assert kernels.record == kernels.total, "the default of a failed task is recorded"


def test_a_wrong_winner_does_not_win(tmp_path, monkeypatch):
    from tvm_involution.tuning.verify import Verifier

    monkeypatch.setattr(Verifier, "error", lambda self, measurer, artifact: "wrong results: relative norm 1.0e+00")
    result = ti.tune(small_network(), trials=16, image_size=SIZE, log_dir=tmp_path, compare=False)
    for state in result.states:
        assert state.best == state.default_seconds
    defaults = {str(state.task.default.trace) for state in result.states}
    best = TuningDatabase(tmp_path / KEY)
    for state in result.states:
        assert str(best.records(state.task.mod)[0].trace) in defaults


def test_an_exported_program_is_tuned_as_it_is(tmp_path):
    program = torch.export.export(small_network(), (torch.zeros(2, 8, *SIZE),))
    torch.export.save(program, tmp_path / "small.pt2")
    ti.tune(tmp_path / "small.pt2", trials=2, log_dir=tmp_path, compare=False)
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


def state(calls: int, default: float, *history: float) -> TaskState:
    task = type("Task", (), {"calls": calls})()
    return TaskState(task, [default], list(history), [min([default, *history])] if history else [])


def test_the_scheduler_spends_where_the_network_gains():
    long, short = state(10, 1e-3, 1e-3), state(1, 1e-3, 1e-3)
    assert next_state([short, long]) is long
    untried = state(1, 5e-4)
    assert next_state([short, long, untried]) is untried, "each task that is worth it gets trials first"
    assert next_state([short, long, state(1, 1e-6)]) is long, "but none of less than a hundredth of the time"
    tired = state(100, 1e-3, *[1e-3] * PATIENCE)
    assert next_state([tired, short]) is short and tired.stopped == "no gain"
    still_gaining = state(1, 1e-3, *[1e-3] * PATIENCE, 0.9e-3)
    assert next_state([still_gaining]) is still_gaining


def test_gains_come_with_their_spread():
    noisy = state(2, 1e-3, 0.8e-3)
    noisy.default_times += [1.2e-3, 1.4e-3]
    assert gain_and_spread([noisy]) == pytest.approx((1 / 0.8, 1.2 / 0.8)), "luck of the default's is no gain"
    noisy.contest = Contest((1e-3, 1.1e-3, 1.2e-3), ((1e-3, 1e-3, 1e-3),), 0)
    assert gain_and_spread([noisy, state(1, 1e-3)]) == pytest.approx((1, 3.4 / 3))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Fleet:
    """A tracker with devices under the key `here`, on loopback."""

    address: str
    tracker: subprocess.Popen
    devices: list[subprocess.Popen]
    start: Callable[[], subprocess.Popen]

    def kill(self, number: int) -> None:
        os.killpg(self.devices[number].pid, signal.SIGKILL)


@contextlib.contextmanager
def fleet(servers: int) -> Iterator[Fleet]:
    port = free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    tracker_words = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
    tracker = subprocess.Popen([sys.executable, "-m", "tvm.exec.rpc_tracker", *tracker_words], **quiet)
    server_words = ["--tracker", f"127.0.0.1:{port}", "--key", "here", "--host", "127.0.0.1"]

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "tvm.exec.rpc_server", *server_words], **quiet)

    devices = []
    try:
        wait_for(port)
        devices += [start() for _ in range(servers)]
        deadline = time.monotonic() + 60
        while len(RpcTracker("127.0.0.1", port, "here").devices()) < servers:
            assert time.monotonic() < deadline, "the servers did not register"
            time.sleep(0.3)
        yield Fleet(f"127.0.0.1:{port}", tracker, devices, start)
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


def tune_on(devices, folder, progress):
    return ti.tune(
        small_network(),
        trials=24,
        image_size=SIZE,
        log_dir=folder,
        rpc=devices.address,
        rpc_key="here",
        progress=progress,
    )


def test_a_fleet_loses_servers_at_any_moment(tmp_path, rng):
    """Of three servers two are killed, at random moments, and one comes back."""
    with fleet(3) as devices:
        moments = sorted(rng.uniform(1, 12, size=2))

        def lose() -> None:
            for number, moment in enumerate(moments):
                time.sleep(moment if not number else moment - moments[0])
                devices.kill(number)
            devices.devices.append(devices.start())

        losing = threading.Thread(target=lose)

        def begin(run) -> None:
            if run.states and not losing.ident:
                losing.start()

        result = tune_on(devices, tmp_path, begin)
        losing.join()
    assert result.trials == 24 and "another machine" in result.not_compared
    times = np.array(measured_seconds(tmp_path))
    assert (times < FAILED).all(), f"a server that goes must not fail its candidates: {moments}"
    kernels = ti.compile(small_network(), image_size=SIZE, tuning_logs=tmp_path).metadata.kernels
    assert kernels.record == kernels.total


@pytest.mark.parametrize("lost", ["devices", "tracker"])
def test_a_fleet_that_is_gone_ends_the_run_in_one_line(lost, tmp_path):
    with fleet(1) as devices:

        def kill(run) -> None:
            if run.states:
                os.killpg((devices.tracker if lost == "tracker" else devices.devices[0]).pid, signal.SIGKILL)

        words = "no device with key 'here'" if lost == "devices" else r"no RPC tracker at .*--port-end"
        start = time.monotonic()
        with pytest.raises(ti.UserError, match=words):
            tune_on(devices, tmp_path, kill)
    assert time.monotonic() - start < 120
    assert all(value < FAILED for value in measured_seconds(tmp_path))


def test_a_fleet_is_asked_before_the_network(tmp_path, monkeypatch):
    from tvm_involution.tuning import tuner

    monkeypatch.setattr(tuner, "extract_tasks", lambda *_, **__: pytest.fail("the tasks were found first"))
    with fleet(0) as devices, pytest.raises(ti.UserError, match="no device with key 'here'"):
        ti.tune(small_network(), trials=4, image_size=SIZE, log_dir=tmp_path, rpc=devices.address, rpc_key="here")
    with pytest.raises(ti.UserError, match="cannot write"):
        ti.tune(small_network(), trials=4, image_size=SIZE, log_dir="/proc/none")


def test_an_interrupt_ends_the_run_at_once(tmp_path):
    command = tune_command(tmp_path, "--trials", "400")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": default_signals}
    with subprocess.Popen(command, env=ENVIRONMENT, start_new_session=True, **pipes) as run:
        for line in run.stdout:
            if int(re.search(r"(\d+) trials", line)[1]) > 0:
                os.killpg(run.pid, signal.SIGINT)
                break
        _, errors = run.communicate(timeout=60)
    assert run.returncode == 130 and "Traceback" not in errors
    assert TuningDatabase(tmp_path / KEY).all_records(), "what was found is kept for compile"
    kept = measured_seconds(tmp_path)
    assert all(value < FAILED for value in kept), "what was interrupted did not fail"


@pytest.mark.skipif(not nvcc_present(), reason="needs nvcc")
def test_cuda_up_to_measuring(tmp_path, rng):
    """Tasks, candidates and building for a GPU work without one."""
    target = resolve_target("nvidia/nvidia-h100")
    tasks = extract_tasks(resolve_network(small_network(), image_size=SIZE), target, dtype="float16")
    linker = measure.linker_of(target)
    for task in (tasks[i] for i in rng.choice(len(tasks), 3, replace=False)):  # nvcc takes seconds for each
        assert Path(measure._build(task.default.mod, target, str(tmp_path / task.name), linker)).is_file()
    task = next(task for task in tasks if "involution" in task.name)
    (candidate,) = PointSearch(task.mod, task.default, task.spaces, {}).propose(1)
    assert Path(measure._build(candidate.mod, target, str(tmp_path / "candidate"), linker)).is_file()


def test_a_network_that_cannot_be_traced_leaves_no_folder(tmp_path):
    with pytest.raises(ti.UserError, match="take a smaller batch or image size"):
        ti.tune(small_network(), trials=1, image_size=(40000, 40000), log_dir=tmp_path / "logs")
    assert not list(tmp_path.iterdir())
