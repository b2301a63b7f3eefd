# SPDX-License-Identifier: Apache-2.0
"""`logs` and `tune` with folders that cannot be read or written, and damaged records: one line, status 2."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import run_cli

from tvm_involution.cli.words import left_out_lines

MODEL = ("rednet_digits", "--target", "llvm")


def _commands(logs: Path) -> dict[str, tuple[object, ...]]:
    return {
        "merge": ("logs", "merge", logs, "--into", logs.parent / "into"),
        "prune": ("logs", "prune", logs),
        "coverage": ("logs", "coverage", *MODEL, "--tuning-logs", logs),
        "tune": ("tune", *MODEL, "--log-dir", logs),
    }


READERS = ("merge", "prune", "coverage")


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("what", ["missing", "a file", "empty"])
def test_folders_of_no_logs(command: str, what: str, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    if what == "a file":
        logs.write_text("")
    elif what == "empty":
        if command == "coverage":
            pytest.skip("an empty folder covers nothing, which is no error")
        logs.mkdir()
    assert str(logs) in run_cli(*_commands(logs)[command]).error_line()


@pytest.mark.parametrize("command", READERS)
def test_a_folder_that_may_not_be_listed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs, listed = tmp_path / "logs", Path.iterdir
    logs.mkdir()

    def iterdir(path: Path):
        if path == logs:
            raise PermissionError(13, os.strerror(13), str(path))
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    line = run_cli(*_commands(logs)[command]).error_line()
    assert f"{logs} cannot be read: Permission denied" in line


@pytest.mark.parametrize("command", ["merge", "prune"])
@pytest.mark.parametrize("line", ["{", "[0]", "[-1, []]", "[9, []]", "null", '["a", {}]', "\\xff"])
def test_damaged_records(command: str, line: str, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "llvm"
    folder.mkdir(parents=True)
    (folder / "database_workload.json").write_text("")
    (folder / "database_tuning_record.json").write_text(line + "\n")
    (folder / "manifest.json").write_text('{"tvm_version": "0", "target": {}, "machine": "", "networks": []}')
    if command == "merge":
        assert "is of TVM 0" in run_cli(*_commands(folder.parent)["merge"]).error_line()
        (folder / "manifest.json").write_text("{" + line)
    assert str(folder) in run_cli(*_commands(folder.parent)[command]).error_line()


@pytest.mark.parametrize("name", ["file/below"])
def test_tuning_into_what_is_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run_cli(*_commands(tmp_path / name)["tune"])
    assert (ended.status, ended.out) == (2, "")
    assert str(tmp_path / name) in ended.err.splitlines()[-1] and "Traceback" not in ended.err


def test_what_tuning_leaves_out_is_named_with_its_share() -> None:
    tasks = [("convolution", 3.0, ""), ("max_pool2d", 1.0, "MetaSchedule aborts on pooling")]
    assert left_out_lines(tasks, "operations") == [
        "left out: max_pool2d, 25.0% of operations: MetaSchedule aborts on pooling"
    ]
