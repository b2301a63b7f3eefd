# SPDX-License-Identifier: Apache-2.0
"""`tvm-involution bench`: tables, files, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import TESTS, default_signals, run_cli
from library_fixture import affine_library, build_library

from tvm_involution.bench.layer import Layer, LayerTable
from tvm_involution.cli.bench_tables import print_layers

QUICK = ("--rounds", "1", "--calls", "2")


def test_a_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    words = ["bench", "rednet_digits", "--against", "torch", "--batch", "2", "--image-size", "32x40", *QUICK]
    files = ["--json", tmp_path / "figures.json", "--chart", tmp_path / "bars.png"]
    result = run_cli(*words, "--per-layer", *files)
    assert result.status == 0, result.err
    for part in ("rednet_digits: ", "batch 2, 3x32x40, float32", "ours", "1.00x", "involution", "GFLOP/s", "rule"):
        assert part in result.out, part
    assert "rednet_digits: torch loads" in result.out and not result.err
    data = json.loads((tmp_path / "figures.json").read_text())
    assert [row["contender"] for row in data["results"]] == ["ours", "torch"]
    assert all(row["median_ms"] > 0 for row in data["results"]) and data["layers"] and data["peak_gflops"] > 0
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bars.png", "figures.json"]


def test_kernels_with_scalars_and_without_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [
        Layer("scale", "elementwise", shapes, 1, 8, 64, 1.0, "rule", "Elementwise")
        for shapes in ([(2, 4), (), (2, 4)], [(3, 5)])
    ]
    print_layers(LayerTable(tuple(layers), 100.0, 10.0, 2.0))
    out = capsys.readouterr().out
    assert "2x4 → 2x4" in out and "→ 3x5" in out


def test_a_library_of_no_zoo_network(tmp_path: Path) -> None:
    library = affine_library(tmp_path / "affine.so", name="affine")
    result = run_cli("bench", library, *QUICK)
    assert result.status == 0 and "ours" in result.out and "torch" not in result.out, result
    line = run_cli("bench", library, "--against", "torch", *QUICK).error_line()
    assert "was compiled from a module in memory" in line and "--against none" in line


def test_files_of_the_current_folder_are_not_run(tmp_path: Path) -> None:
    """Neither here nor in the processes of the contenders, which are started by Python's own `-c`."""
    affine_library(tmp_path / "affine.so", name="affine")
    for name in ("torch", "numpy", "runpy", "tvm_ffi"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w')\n")
    done = subprocess.run(
        [sys.executable, "-m", "tvm_involution", "bench", "affine.so", *QUICK],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
    )
    assert done.returncode == 0 and not (tmp_path / "ran").exists(), done


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.so"], "library none.so does not exist"),
        (["rednet5O"], "unknown model 'rednet5O': did you mean rednet50"),
        (["rednet26", "--against", "tensorrt"], "unknown peer 'tensorrt': expected some of torch, inductor"),
        (["rednet26", "--against", "openvin"], "did you mean openvino?"),
        (["rednet26", "--image-size", "224"], "'224' is no image size"),
        (["rednet26", "--batch", "0"], "0 is not in the range x>=1"),
        (["rednet26", "--rounds", "0"], "0 is not in the range x>=1"),
        (["rednet26", "--timeout", "0"], "0.0 is not in the range x>0"),
        (["rednet26", "--json", "missing/x.json"], "cannot write missing/x.json: No such file or directory"),
        (["rednet26", "--chart", "bars.txt"], "unknown kind of picture"),
    ],
)
def test_wrong_words(words: list[str], message: str) -> None:
    assert message in run_cli("bench", *words).error_line()


def test_a_network_that_cannot_be_compiled() -> None:
    result = run_cli("bench", "none.pt2", "--against", "none")
    assert result.status == 2 and result.err.count("\n") == 1
    assert "none.pt2 does not exist" in result.err and "compiling" in result.out


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_involution.bench.contenders.openvino.OpenVino.modules", ("openvino_of_nobody",))
    line = run_cli("bench", "rednet26", "--against", "openvino").error_line()
    assert 'openvino needs openvino_of_nobody: pip install "tvm-involution[compile,bench]"' in line


def test_a_chart_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.backend_bases"):
        monkeypatch.setitem(sys.modules, name, None)
    assert "[bench]" in run_cli("bench", "rednet26", "--chart", "x.png").error_line()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "float16"], "is compiled already; leave out --dtype"),
        (["--image-size", "8x8"], "is compiled already; leave out --image-size"),
        (["--per-layer"], "--per-layer needs the network, not a library"),
    ],
)
def test_what_a_library_has_settled(tmp_path: Path, words: list[str], message: str) -> None:
    library = affine_library(tmp_path / "affine.so")
    assert message in run_cli("bench", library, *words).error_line()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "rednet26", "device_type": "cuda"}, "was compiled for cuda"),
        ({"name": "rednet26", "weights_origin": "gone.pth"}, "has weights of gone.pth"),
    ],
)
def test_libraries_that_cannot_be_timed(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    library = build_library(tmp_path / "x.so", lambda x: x + x, **changes)
    assert message in run_cli("bench", library, "--against", "torch").error_line()


def test_ctrl_c(tmp_path: Path) -> None:
    """One line, status 130; no file, no folder and no process stays."""
    words = [sys.executable, "-u", "-m", "tvm_involution", "bench", "rednet_digits", "--against", "torch"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [*words, "--json", str(tmp_path / "x.json")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=default_signals,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "torch builds" in line:
            break
    # ours waits for its turn, torch is at work
    while len(children := _children(process.pid)) < 2 or not any(map(_runs_torch, children)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "tvm-involution: interrupted; no file is half written" and "Traceback" not in err
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    # torch leaves an empty torchinductor_USER
    assert not list(tmp_path.glob("tvm-involution-*")) and not list(tmp_path.glob("*.json*"))


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _runs_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
