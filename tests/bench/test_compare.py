# SPDX-License-Identifier: Apache-2.0
"""The engine: what is measured and checked, and that a peer that fails stops nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import bench_peers
import numpy as np
import pytest
from command_line import TESTS, run_python
from library_fixture import affine_library

from tvm_involution import UserError
from tvm_involution.bench.compare import compare, time_layers
from tvm_involution.bench.contenders import PEERS, select_peers
from tvm_involution.bench.effort import Effort
from tvm_involution.bench.subject import Subject
from tvm_involution.nn import build_model, count_operations

QUICK = Effort(rounds=2, calls=3, timeout=120)
MODEL = "conftest:tiny_rednet"
SIZE = (32, 32)


@pytest.fixture(autouse=True)
def workers_see_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))


def subject(library: Path | None = None, **sizes: object) -> Subject:
    """A tiny network, compiled before where a library is given."""
    return Subject(MODEL, 1, image_size=SIZE, given_library=library, **sizes)  # type: ignore[arg-type]


def test_ours_beside_torch(small_library: Path) -> None:
    seen: list[str] = []
    comparison = compare([subject(small_library, batch=3)], select_peers(["torch"]), QUICK, seen.append)
    ours, torch = comparison.results
    assert (ours.contender, torch.contender) == ("ours", "torch")
    for result in (ours, torch):
        assert result.failure is None
        assert len(result.seconds) == 2 * 3 and min(result.seconds) > 0
        assert result.min_ms == 1e3 * min(result.seconds) <= result.median_ms
        # float32 against float64: rounding, but not the reference itself
        assert 1e-9 < result.relative_error < 1e-5
        assert 0 < result.load_s < result.first_result_s
        assert result.peak_memory_bytes > 1 << 20
    assert ours.ratio == 1 and torch.ratio == pytest.approx(torch.median_ms / ours.median_ms)
    assert ours.size_bytes == small_library.stat().st_size and torch.size_bytes is None
    assert ours.peak_memory_bytes < torch.peak_memory_bytes  # torch is not in our process
    data = json.loads(json.dumps(comparison.to_json()))
    assert data["settings"] == {
        "batch": 3,
        "input_shapes": [[3, 3, 32, 32]],
        "dtype": "float32",
        "rounds": 2,
        "calls": 3,
    }
    assert {"cpu", "cores", "threads", "date", "python"} <= set(data["machine"])
    assert data["results"][1]["median_ms"] == torch.median_ms and data["results"][1]["settings"]
    assert "1 threads, batch 3, 3x32x32, float32" in comparison.title()
    assert [text for text in seen if "round" in text] == ["round 1/2", "round 2/2"]


def test_failing_peers_stop_nobody(small_library: Path) -> None:
    peers = [
        bench_peers.Raises(),
        bench_peers.Crashes(),
        bench_peers.Wrong(),
        bench_peers.Shapeless(),
        bench_peers.Chatty(),
    ]
    results = {r.contender: r for r in compare([subject(small_library)], peers, QUICK).results}
    failures = {name: result.failure for name, result in results.items()}
    assert failures.pop("ours") is None and len(results["ours"].seconds) == 6
    assert failures == {
        "raises": "RuntimeError: no such operator",
        "crashes": "SIGSEGV: the driver is on fire",
        "wrong": "computes something else: relative error 1.0e+00, of which 1e-03 can be rounding",
        "shapeless": "computes something else: outputs [[3, 3]], expected [[1, 10]]",
        "chatty": "MemoryError: out of luck",
    }
    assert all(not r.seconds and r.ratio is None and r.median_ms is None for r in results.values() if r.failure)


def test_a_peer_that_hangs(small_library: Path) -> None:
    effort = Effort(rounds=1, calls=1, timeout=10)
    ours, hangs = compare([subject(small_library)], [bench_peers.Hangs()], effort).results
    assert ours.failure is None and hangs.failure == "no answer within 10 s"


def test_a_dtype_that_a_peer_lacks() -> None:
    peers = [peer for peer in PEERS if peer.name == "onnxruntime"]
    sizes = {"dtype": "bfloat16"}
    comparison = compare([subject(**sizes)], [*peers, *select_peers(["torch"])], QUICK)
    ours, onnxruntime, torch = comparison.results
    assert onnxruntime.failure == "no bfloat16 on a CPU"
    for result in (ours, torch):
        assert result.failure is None and 1e-4 < result.relative_error < 0.1
    assert comparison.to_json()["settings"]["dtype"] == "bfloat16"


def test_our_own_library_is_checked(tmp_path: Path) -> None:
    """One that does not compute the network it is said to be gets no times."""
    wrong = Subject("bench_networks:doubles", 1, given_library=affine_library(tmp_path / "affine.so"))
    ours, torch = compare([wrong], select_peers(["torch"]), QUICK).results
    assert ours.failure is not None and ours.failure.startswith("computes something else") and not ours.seconds
    assert torch.failure is None and torch.seconds and torch.ratio is None


def test_a_library_alone_needs_no_network(tmp_path: Path) -> None:
    network = Subject("small", 1, given_library=affine_library(tmp_path / "affine.so"))
    (ours,) = compare([network], [bench_peers.Hangs()], QUICK, ours_alone={"small"}).results
    assert ours.failure is None and ours.relative_error == 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Subject("rednet5O", 1), "unknown model 'rednet5O'"),
        (Subject("none.pt2", 1), "none.pt2 does not exist"),
        (Subject(MODEL, 1, dtype="float8"), "unknown dtype 'float8'"),
        (Subject(MODEL, 1, checkpoint=Path("none.pth")), "none.pth"),
        (Subject("x", 1, given_library=Path("none.so")), "library none.so does not exist"),
    ],
)
def test_networks_that_cannot_be_compiled(request_: Subject, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compare([request_], [], QUICK)


def test_layers_add_up_to_the_network() -> None:
    table = time_layers(subject(batch=2), QUICK)
    counted = 2 * count_operations(build_model("rednet_digits"), (3, *SIZE)).multiply_adds
    products = [layer for layer in table.layers if layer.kind in ("convolution", "involution", "linear")]
    # Winograd's algorithm takes a quarter of the products; programs also transform, add biases and fill up packs
    as_counted = sum(x.calls * x.operations * (4 if "winograd" in x.kernel else 1) for x in products)
    assert 2 * counted <= as_counted < 2 * 1.5 * counted
    assert table.operations == sum(x.calls * x.operations for x in table.layers)
    assert {layer.kind for layer in table.layers} == {
        "convolution",
        "involution",
        "linear",
        "pooling",
        "elementwise",
    }
    assert all(layer.schedule in ("record", "rule", "borrowed") for layer in table.layers)
    assert sum(row["share_of_total"] for row in table.to_json()["layers"]) == pytest.approx(1)
    assert min(table.peak_gflops, table.peak_gbs, table.network_us, *(x.microseconds for x in table.layers)) > 0
    linear = next(layer for layer in table.layers if layer.kind == "linear")
    assert linear.shapes == ((2, 512), (1, 1, 1, 512, 16), (10,), (2, 10))
    assert linear.bytes == 4 * (2 * 512 + 512 * 16 + 10 + 2 * 10)
    assert linear.gflops == pytest.approx(linear.operations / linear.microseconds / 1e3)


def test_workers_import_nothing_that_would_be_measured() -> None:
    run_python(
        "import sys, tvm_involution.bench.worker, tvm_involution.bench.contenders\n"
        "heavy = {'torch', 'tvm', 'tvm_ffi', 'onnxruntime', 'openvino', 'rich', 'click'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )


def test_a_worker_ends_with_its_parent(small_library: Path, tmp_path: Path) -> None:
    """Even where the parent is killed outright: its end of the pipe closes."""
    timed = Subject("x", 1, folder=tmp_path, batch=1, dtype="float32", given_library=small_library)
    timed.write_inputs([np.ones((1, 3, 32, 32), np.float32)])
    request = {
        "step": "run",
        "contender": "tvm_involution.bench.contenders.ours:Ours",
        "subject": timed.to_json(),
    }
    words = [sys.executable, "-m", "tvm_involution.bench.worker"]
    done = subprocess.run(words, input=json.dumps(request) + "\n2\n", capture_output=True, text=True, timeout=60)
    ready, turn = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0 and set(ready) == {"load_s", "first_result_s"} and len(turn["seconds"]) == 2
