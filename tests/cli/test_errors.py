# SPDX-License-Identifier: Apache-2.0
"""Wrong use ends with status 2 and one line; `--debug` shows where it came from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import run_cli

from tvm_involution.cli.main import tvm_involution

COMMANDS = sorted(tvm_involution.commands)


def test_commands_of_the_contract() -> None:
    assert set(COMMANDS) >= {"models", "targets", "tune", "compile", "run", "inspect", "bench"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command: str) -> None:
    for words in ([command, "--help"], [command, "-h"]):
        result = run_cli(*words)
        assert result.status == 0
        assert "Examples:" in result.out and f"tvm-involution {command} " in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bogus"], "No such command 'bogus'"),
        (["--bogus"], "No such option '--bogus'"),
        (["models", "--colour"], "No such option '--colour'"),
        (["models", "surplus"], "unexpected extra argument"),
        (["inspect"], "Missing argument 'LIBRARY'"),
        (["run", "x.so"], "Missing option '--input'"),
        (["run", "x.so", "--input", "a.png", "--top-k", "0"], "0 is not in the range x>=1"),
        (["run", "x.so", "--input", "a.png", "--top-k", "few"], "'few' is not a valid int"),
        (["compile", "rednet26"], "Missing option '-o'"),
        (["tune"], "Missing argument 'MODEL'"),
        (["tune", "rednet26", "--trials", "0"], "0 is not in the range x>=1"),
        (["tune", "rednet26", "--minutes", "0"], "0.0 is not in the range x>0"),
        (["tune", "rednet26", "--dtype", "int8"], "'int8' is not one of"),
        (["logs", "merge", "--into", "x"], "Missing argument 'SOURCES...'"),
        (["compile", "rednet26", "-o", "x.so", "--batch", "1,x"], "'1,x' is no list of batch sizes"),
        (["compile", "rednet26", "-o", "x.so", "--batch", "0"], "'0' is no list of batch sizes"),
        (["compile", "rednet26", "-o", "x.so", "--image-size", "224"], "'224' is no image size"),
        (["compile", "rednet26", "-o", "x.so", "--image-size", "0x224"], "'0x224' is no image size"),
    ],
)
def test_wrong_use(words: list[str], message: str) -> None:
    line = run_cli(*words).error_line()
    assert line.startswith("tvm-involution: ")
    assert message.lower() in line.lower()
    assert "--help`" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "rednet26", "--rpc", "here"], "expected rpc='HOST:PORT'"),
        (["tune", "rednet26", "--target", "nvidia/nvidia-h100"], "no GPU here to measure sm_90a on"),
        (["tune", "rednet27", "--trials", "1"], "rednet27"),
        (["logs", "coverage", "rednet26", "--tuning-logs", "/nowhere"], "do not exist"),
        (["logs", "prune", "/nowhere"], "holds no tuning logs"),
    ],
)
def test_bad_input_of_tuning(words: list[str], message: str) -> None:
    assert message in run_cli(*words).error_line()


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("words", [["tune", "rednet26"], ["compile", "rednet26", "-o", "x.so"]])
def test_this_machines_gpu_where_there_is_none(words: list[str]) -> None:
    line = run_cli(*words, "--target", "cuda").error_line()
    assert (
        "no NVIDIA driver on this machine (libcuda.so.1); install driver" in line
        and "or name the card to build for" in line
    )


def test_no_words_show_the_help() -> None:
    result = run_cli()
    assert result.status == 2 and "Commands:" in result.out


@pytest.mark.parametrize("words", [["--debug", "inspect", "none.so"], ["inspect", "none.so", "--debug"]])
def test_debug_shows_the_traceback(words: list[str]) -> None:
    result = run_cli(*words)
    assert result.status == 2
    assert "Traceback" in result.err and result.err.splitlines()[-1].startswith("tvm-involution: library none.so")


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not the user's mistake is not dressed up as one."""

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tvm_involution.cli.models.list_models", broken)
    result = run_cli("models")
    assert result.status == 1
    assert "Traceback" in result.err and "ZeroDivisionError" in result.err


def test_python_m(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tvm_involution"]
    done = subprocess.run([*line, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tvm-involution")
    done = subprocess.run([*line, "inspect", tmp_path / "none.so"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
